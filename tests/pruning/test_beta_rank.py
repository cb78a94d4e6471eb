"""Beta-Rank against its definition, place by place, and the properties that a ranking must have."""

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith_calibration.errors import DataError
from edgesmith_pruning.scores.beta_rank import DeviationObserver, beta_rank, over_atoms


def conv_node(weight, **attributes):
    w = ir.Value(name="w", shape=ir.Shape(weight.shape))
    return ir.node("Conv", [ir.Value(name="x"), w], attributes)


def direct(weight, inputs, outputs, groups, stride, pad):
    """Loop over places as the specification says, with the windows cut out by hand."""
    padded = np.pad(inputs, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    size, per_group, result = weight.shape[2], inputs.shape[1] // groups, []
    for k in range(len(weight)):
        group = k // (len(weight) // groups)
        ratios = []
        for row in range(outputs.shape[2]):
            for column in range(outputs.shape[3]):
                top, left = row * stride, column * stride
                window = padded[:, group * per_group : (group + 1) * per_group, top : top + size, left : left + size]
                if window.std() > 1e-6:
                    ratios.append(outputs[:, k, row, column].std() / window.std())
        result.append(np.abs(weight[k]).mean() * np.mean(ratios))
    result = np.array(result)
    return (result - result.min()) / (result.max() - result.min())


@pytest.mark.parametrize(("groups", "stride", "pad"), [(1, 1, 1), (1, 2, 0), (2, 1, 1), (4, 2, 1)])
def test_it_is_the_formula_place_by_place(groups, stride, pad):
    generator = np.random.default_rng(groups)
    weight = generator.standard_normal((8, 4 // groups, 3, 3))
    inputs = generator.standard_normal((6, 4, 8, 8))
    side = (8 + 2 * pad - 3) // stride + 1
    outputs = generator.standard_normal((6, 8, side, side)) * generator.random(8)[:, None, None]
    node = conv_node(weight, group=groups, strides=[stride, stride], pads=[pad] * 4)
    observer = DeviationObserver(node).update(inputs[:2], outputs[:2]).update(inputs[2:], outputs[2:])
    ranks = beta_rank(weight, observer.output_deviation, observer.input_deviation)
    np.testing.assert_allclose(ranks, direct(weight, inputs, outputs, groups, stride, pad), atol=1e-9)


def test_a_dead_filter_ranks_lowest_only_out_over_in():
    generator = np.random.default_rng(0)
    weight, inputs = generator.standard_normal((3, 2, 1, 1)), generator.random((1, 5))
    outputs = np.stack([generator.random(5) + 1, np.full(5, 1e-5), generator.random(5) + 1])
    assert beta_rank(weight, outputs, inputs).argmin() == 1
    assert beta_rank(weight, outputs, inputs, "in_over_out").argmax() == 1


def test_places_where_nothing_moves_do_not_count():
    weight = np.ones((2, 1, 1, 1))
    inputs, outputs = np.array([[1.0, 0.0]]), np.array([[1.0, 5.0], [2.0, 5.0]])
    assert beta_rank(weight, outputs, inputs).tolist() == [0.0, 1.0]
    assert np.isfinite(beta_rank(weight, np.zeros((2, 2)), inputs)).all()


def test_permuting_filters_permutes_ranks():
    generator = np.random.default_rng(1)
    weight, outputs, inputs = (
        generator.standard_normal((6, 3, 3, 3)),
        generator.random((6, 9)),
        generator.random((1, 9)),
    )
    order = generator.permutation(6)
    ranks = beta_rank(weight, outputs, inputs)
    np.testing.assert_array_equal(beta_rank(weight[order], outputs[order], inputs), ranks[order])


def test_equal_filters_have_equal_ranks():
    assert beta_rank(np.ones((4, 2, 1, 1)), np.ones((4, 3)), np.ones((1, 3))).tolist() == [0.0] * 4


def test_an_atom_has_the_mean_rank_of_all_its_filters():
    ranks = [np.array([0.0, 1.0]), np.array([0.5, 0.2, 0.4, 0.1])]
    positions = [((0,), (1,)), ((0, 1), (2, 3))]
    np.testing.assert_allclose(over_atoms(ranks, positions, 2), [(0.0 + 0.7) / 3, (1.0 + 0.5) / 3])


def test_images_of_another_size_are_refused():
    observer = DeviationObserver(conv_node(np.ones((2, 1, 1, 1)))).update(np.ones((1, 1, 4, 4)), np.ones((1, 2, 4, 4)))
    with pytest.raises(DataError, match="different sizes"):
        observer.update(np.ones((1, 1, 5, 5)), np.ones((1, 2, 5, 5)))
