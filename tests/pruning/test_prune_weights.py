"""The method on graphs: zeros where they belong, outputs that hardly move, everything shared stays shared."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgesmith.errors import DataError, StepError
from edgesmith.execution.sample import sample_inputs
from edgesmith.model import Model
from edgesmith.protection import ProtectedAxis, Protection
from edgesmith_pruning.options.weights import PruneWeightsOptions
from edgesmith_pruning.prune_weights import PruneWeights
from edgesmith_pruning.sparsity.masks import Pattern, removed_count
from small_graphs import SIGNED, context, graph, node, quantize, run, sqnr

TWO_OF_FOUR = Pattern(2, 4)
CRITERIA = ("knowledge-retention", "sparsegpt", "wanda", "magnitude", "randomized")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def correlated(rows, width, seed=0):
    generator = np.random.default_rng(seed)
    values = normal(rows, width, seed=seed + 1) * np.exp(0.5 * generator.normal(size=width))
    return (values @ (np.eye(width) + 0.5 * generator.normal(size=(width, width)) / np.sqrt(width))).astype(np.float32)


def prune(model, data=None, dialect=None, **options):
    used = context(PruneWeightsOptions(**options), data, *filter(None, [dialect]))
    verdict = PruneWeights().check(model, used)
    assert verdict.status == "ok", verdict
    before = ir.to_proto(model.ir).SerializeToString()
    result = PruneWeights().apply(model, used)
    assert ir.to_proto(model.ir).SerializeToString() == before
    assert [each.op_type for each in result.graph] == [each.op_type for each in model.graph]
    return result, used.notes


def check(model, data=None, **options):
    return PruneWeights().check(model, context(PruneWeightsOptions(**options), data))


def weight_of(model, name):
    return model.graph.initializers[name].const_value.numpy()


def mlp(width=32):
    nodes = [
        node("MatMul", ["x", "a"], "h"),
        node("Add", ["h", "ab"], "hb"),
        node("Relu", ["hb"], "r"),
        node("Gemm", ["r", "b", "bb"], "s", transB=1),
        node("Add", ["s", "x"], "t"),
        node("MatMul", ["t", "c"], "y"),
    ]
    weights = {
        "a": normal(width, 64),
        "ab": normal(64, seed=1),
        "b": normal(width, 64, seed=2),
        "bb": normal(width, seed=3),
        "c": normal(width, 24, seed=4),
    }
    return graph(nodes, weights, {"x": ["n", width]})


DATA = {"x": correlated(256, 32)}


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4", "4:8"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_layer_has_exactly_its_zeros(criterion, pattern):
    result, notes = prune(mlp(), DATA, criterion=criterion, pattern=pattern, sparsity=0.6, heads=True)
    parsed = Pattern.parse(pattern)
    total = 0
    for name in ("a", "b", "c"):
        weight = weight_of(result, name)
        matrix = weight if name == "b" else weight.T
        zeros = (matrix == 0).sum(axis=1)
        total += zeros.sum()
        if parsed is not None:
            assert parsed.holds(matrix) and zeros.sum() == matrix.size * parsed.sparsity
        elif criterion in ("knowledge-retention", "wanda"):
            assert (zeros == removed_count(matrix.shape[1], 0.6)).all()
        else:
            assert zeros.sum() == removed_count(matrix.size, 0.6)
    assert any(remark.startswith(f"Set {total} of") for remark in notes.remarks)


def test_adaptive_pruning_is_closest_on_data_it_has_not_seen():
    model, other = mlp(), {"x": correlated(256, 32, seed=0)[::-1] * np.float32(0.9)}
    expected = run(model, other)["y"]
    published = {"refit": False, "adaptive_weight": False}
    noise = {
        name: sqnr(expected, run(prune(model, DATA, criterion=name, **published)[0], other)["y"])
        for name in ("sparsegpt", "wanda", "magnitude")
    }
    adaptive = sqnr(expected, run(prune(model, DATA)[0], other)["y"])
    # Each step of the ladder is worth more than a decibel on these layers.
    assert adaptive > noise["sparsegpt"] + 1
    assert noise["sparsegpt"] > noise["wanda"] > noise["magnitude"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_two_runs_give_the_same_bits_and_seeds_only_matter_where_masks_are_drawn(criterion):
    used = context(PruneWeightsOptions(criterion=criterion), DATA)
    first, second, other = (
        ir.to_proto(PruneWeights().apply(mlp(), replace(used, seed=seed)).ir).SerializeToString() for seed in (0, 0, 1)
    )
    assert first == second
    assert (first != other) == (criterion == "randomized")


def test_refit_never_raises_the_error_of_a_layer_on_its_calibration_data():
    """Measured on the graph: each layer's output in the pruned network against the dense one, both with all else."""
    nodes = [node("MatMul", ["x", "a"], "y")]
    model = graph(nodes, {"a": normal(32, 24)}, {"x": ["n", 32]})
    expected = run(model, DATA)["y"].astype(np.float64)
    for criterion in CRITERIA:
        errors = [
            np.square(run(prune(model, DATA, criterion=criterion, heads=True, **options)[0], DATA)["y"] - expected)
            for options in ({}, {"refit": False, "adaptive_weight": False})
        ]
        assert errors[0].sum() <= errors[1].sum() * (1 + 1e-6)


def test_biases_keep_the_mean_of_outputs():
    model, data = mlp(), {"x": correlated(256, 32) + np.float32(2)}
    result, _ = prune(model, data, sparsity=0.8, only=("node_h",), samples=256)
    kept, _ = prune(model, data, sparsity=0.8, only=("node_h",), biases=False, samples=256)
    taps = [
        run(Model(_tapped(each.ir, "hb"), each.task, each.provenance), data)["hb"] for each in (model, result, kept)
    ]
    # Calibration ran at full optimization, so sums may differ in the last places.
    np.testing.assert_allclose(taps[1].mean(axis=0), taps[0].mean(axis=0), atol=1e-3)
    np.testing.assert_array_equal(weight_of(kept, "ab"), weight_of(model, "ab"))
    assert np.square(taps[1] - taps[0]).sum() < np.square(taps[2] - taps[0]).sum()


def _tapped(model, name):
    copy = model.clone()
    copy.graph.outputs.append(next(v for each in copy.graph for v in each.outputs if v.name == name))
    return copy


def test_a_shared_weight_is_solved_once_with_pooled_statistics():
    nodes = [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "w"], "y")]
    model = graph(nodes, {"w": normal(32, 32)}, {"x": ["n", 32]})
    result, _ = prune(model, DATA, heads=True)
    assert list(result.graph.initializers) == ["w"]
    assert ((weight_of(result, "w") == 0).sum(axis=0) == 16).all()
    expected = run(model, DATA)["y"]
    first_only = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(32, 32)}, {"x": ["n", 32]})
    alone = weight_of(prune(first_only, DATA, heads=True)[0], "w")
    assert not np.array_equal(alone, weight_of(result, "w"))
    swapped = result.clone()
    swapped.graph.initializers["w"].const_value = ir.tensor(alone)
    assert sqnr(expected, run(result, DATA)["y"]) > sqnr(expected, run(swapped, DATA)["y"])


def test_a_table_that_a_head_shares_stays_dense():
    nodes = [
        node("Gather", ["table", "ids"], "h"),
        node("MatMul", ["h", "w"], "g"),
        node("Transpose", ["table"], "head", perm=[1, 0]),
        node("MatMul", ["g", "head"], "y"),
    ]
    weights = {"table": normal(50, 32), "w": normal(32, 32, seed=1)}
    model = graph(nodes, weights, {"ids": ["n", 4]}, types={"ids": onnx.TensorProto.INT64})
    data = {"ids": np.random.default_rng(0).integers(0, 50, (32, 4))}
    result, notes = prune(model, data)
    np.testing.assert_array_equal(weight_of(result, "table"), weights["table"])
    assert "is shared with node_h" in notes.skipped["node_y"]


def test_heads_stay_dense_unless_asked_for():
    result, notes = prune(mlp(), DATA)
    assert np.count_nonzero(weight_of(result, "c")) == 32 * 24
    assert notes.skipped == {"node_y": "it makes an output (option heads)"}


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_zeros_survive_symmetric_int8_bit_for_bit(pattern):
    result, _ = prune(mlp(), DATA, pattern=pattern)
    quantized = quantize(result, DATA, SIGNED)
    for name in ("a", "b"):
        (codes,) = [
            value.const_value.numpy()
            for key, value in quantized.graph.initializers.items()
            if value.const_value.dtype == ir.DataType.INT8
            and value.const_value.shape == weight_of(result, name).shape
            and key.startswith(f"{name}_")
        ]
        assert (codes[weight_of(result, name) == 0] == 0).all()
        if pattern == "2:4":
            assert TWO_OF_FOUR.holds(codes if name == "b" else codes.T)


def test_the_written_file_computes_the_same(tmp_path):
    result, _ = prune(mlp(), DATA, pattern="2:4")
    result.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    for name in ("a", "b"):
        np.testing.assert_array_equal(weight_of(loaded, name), weight_of(result, name))
    np.testing.assert_array_equal(run(loaded, DATA)["y"], run(result, DATA)["y"])


def test_weights_of_half_precision_stay_so():
    half = onnx.TensorProto.FLOAT16
    nodes = [node("MatMul", ["x", "w"], "y")]
    model = graph(nodes, {"w": normal(32, 24).astype(np.float16)}, {"x": ["n", 32]}, types={"x": half, "y": half})
    result, _ = prune(model, {"x": DATA["x"].astype(np.float16)}, heads=True, pattern="2:4")
    weight = weight_of(result, "w")
    assert weight.dtype == np.float16 and TWO_OF_FOUR.holds(weight.T)


def test_weights_in_constant_nodes_are_pruned_too():
    constant = onnx.helper.make_node(
        "Constant", [], ["w"], "w_node", value=onnx.numpy_helper.from_array(normal(32, 24), "w")
    )
    model = graph([constant, node("MatMul", ["x", "w"], "y")], {}, {"x": ["n", 32]})
    used = context(PruneWeightsOptions(heads=True), DATA)
    result = PruneWeights().apply(model, used)
    (stored,) = [v.const_value.numpy() for v in result.graph.initializers.values()]
    assert ((stored == 0).sum(axis=0) == 16).all()
    assert sqnr(run(model, DATA)["y"], run(result, DATA)["y"]) > 5


def test_protected_places_stay_dense(tmp_path):
    protection = Protection(
        weights={
            "a": {1: ProtectedAxis(length=64, kept=(3, 10)), 0: ProtectedAxis(length=32, kept=(5,))},
            "b": {0: ProtectedAxis(length=32, kept=tuple(range(32)))},
        }
    )
    protection.save(tmp_path / "protect.json")
    model = mlp()
    result, notes = prune(model, DATA, protect=str(tmp_path / "protect.json"))
    before, after = (weight_of(each, "a") for each in (model, result))
    np.testing.assert_array_equal(after[:, [3, 10]], before[:, [3, 10]])
    assert (after[5] != 0).all()
    assert ((np.delete(after, [3, 10], axis=1) == 0).sum(axis=0) == 16).all()
    np.testing.assert_array_equal(weight_of(result, "b"), weight_of(model, "b"))
    assert notes.skipped["node_s"] == "all its weights are protected"
    _, notes = prune(model, DATA, protect=str(tmp_path / "protect.json"), pattern="2:4", heads=True)
    assert notes.skipped["node_h"] == "protected weights stay, so that 2:4 cannot hold"


def test_a_protection_of_another_model_is_refused(tmp_path):
    Protection(weights={"a": {0: ProtectedAxis(length=8, kept=(3,))}}).save(tmp_path / "protect.json")
    verdict = check(mlp(), DATA, protect=str(tmp_path / "protect.json"))
    assert verdict.status == "refuse" and "counts 8 places" in verdict.reason
    assert check(mlp(), DATA, protect=str(tmp_path / "none.json")).status == "refuse"


def test_quantized_layers_are_left_alone():
    model = quantize(mlp(), DATA, SIGNED, only=("node_h",))
    result, notes = prune(model, DATA)
    assert notes.skipped["node_h"].startswith("already quantized")
    assert np.count_nonzero(weight_of(result, "b")) == 32 * 32
    done = quantize(mlp(), DATA, SIGNED)
    verdict = check(done, DATA)
    assert verdict.status == "skip" and "already quantized" in verdict.reason
    with pytest.raises(StepError, match="found nothing to prune"):
        PruneWeights().apply(done, context(PruneWeightsOptions(), DATA))


def test_magnitude_without_refit_needs_no_data():
    options = {"criterion": "magnitude", "refit": False}
    assert not PruneWeightsOptions(**options).needs.data
    result, notes = prune(mlp(), **options)
    weight, dense = weight_of(result, "a"), weight_of(mlp(), "a")
    np.testing.assert_array_equal(weight[weight != 0], dense[weight != 0])
    assert np.abs(dense[weight == 0]).max() <= np.abs(weight[weight != 0]).min()
    assert not any("calibration" in remark for remark in notes.remarks)


def test_data_is_asked_for_where_it_is_needed():
    verdict = check(mlp())
    assert verdict.status == "refuse" and "--data" in verdict.reason and "magnitude" in verdict.reason
    with pytest.raises(DataError, match="no calibration data for prune-weights"):
        PruneWeights().apply(mlp(), context(PruneWeightsOptions()))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pattern": "4:4"}, "removes nothing"),
        ({"only": ("nod_y",)}, "which no node matches"),
    ],
)
def test_options_that_cannot_work_are_refused(options, reason):
    verdict = check(mlp(), DATA, **options)
    assert verdict.status == "refuse" and reason in verdict.reason


@pytest.mark.parametrize("options", [{"sparsity": 1.0}, {"pattern": "2-4"}, {"pattern": "0:4"}, {"ratio": 0.5}])
def test_options_out_of_range_do_not_validate(options):
    with pytest.raises(ValidationError):
        PruneWeightsOptions(**options)


def test_what_stays_dense_has_its_reason():
    nodes = [
        node("Conv", ["x", "k"], "h", group=8),
        node("Flatten", ["h"], "f"),
        node("MatMul", ["f", "odd"], "o"),
        node("MatMul", ["o", "small"], "p"),
        node("Gemm", ["turned", "p"], "y", transA=1),
    ]
    weights = {
        "k": normal(8, 1, 1, 1),
        "odd": normal(8 * 9, 30),
        "small": normal(30, 2),
        "turned": normal(4, 5),
    }
    model = graph(nodes, weights, {"x": [4, 8, 3, 3]})
    _, notes = prune(model, {"x": normal(8, 8, 3, 3)}, batch_size=4)
    assert notes.skipped == {
        "node_h": "it reads one channel each",
        "node_p": "it has 60 weights only",
        "node_y": "its first input is constant; weights must be the second",
    }
    verdict = check(model, {"x": normal(8, 8, 3, 3)}, pattern="5:7")
    assert verdict.status == "skip" and "not a multiple of 7" in verdict.reason


def test_the_report_says_what_the_target_gains():
    from dataclasses import replace

    _, notes = prune(mlp(), DATA, pattern="2:4")
    assert any("gains size only: onnx-cpu multiplies by zeros" in remark for remark in notes.remarks)
    sparse = replace(SIGNED, sparse_weights="2:4")
    _, notes = prune(mlp(), DATA, sparse, pattern="2:4")
    assert any("2 of 2 layers follow 2:4, for which signed has kernels" in remark for remark in notes.remarks)
    _, notes = prune(mlp(), DATA, sparse)
    assert any("and has kernels for 2:4 only" in remark for remark in notes.remarks)


def test_little_data_is_said():
    _, notes = prune(mlp(), {"x": DATA["x"][:5]})
    assert any("There was little data for 2 layers" in remark for remark in notes.remarks)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        (1, {}),
        (3, {}),
        (3, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        (3, {"dilations": [2, 2], "pads": [2, 0, 2, 0]}),
    ],
)
def test_convolutions_are_fitted_to_their_windows(kernel, attributes, pattern):
    """The refit knows which number of a window stands where: with another order it would not lower the error so far."""
    weights = {"k": normal(12, 8, kernel, kernel), "kb": normal(12, seed=5)}
    nodes = [node("Conv", ["x", "k", "kb"], "h", **attributes), node("Relu", ["h"], "y")]
    model = graph(nodes, weights, {"x": ["n", 8, 9, 9]})
    smooth = np.cumsum(np.cumsum(normal(60, 4, 9, 9), axis=2), axis=3) / 5
    # Eight channels that share four causes, and some noise: what one loses, others can make up for.
    image = (np.einsum("nchw,cd->ndhw", smooth, normal(4, 8, seed=7)) + 0.3 * normal(60, 8, 9, 9)).astype(np.float32)
    data, other = {"x": image[:40]}, {"x": image[40:]}
    result, _ = prune(model, data, pattern=pattern, batch_size=4, heads=True)
    plain, _ = prune(model, data, pattern=pattern, heads=True, criterion="wanda", refit=False, adaptive_weight=False)
    expected = run(model, other)["y"]
    assert sqnr(expected, run(result, other)["y"]) > sqnr(expected, run(plain, other)["y"]) + 2
    stored = weight_of(result, "k")
    assert ((stored == 0).reshape(12, -1).sum(axis=1) == 4 * kernel**2).all()
    assert pattern == "unstructured" or TWO_OF_FOUR.holds(np.moveaxis(stored, 1, -1).reshape(12, -1))


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "vit", "cnn"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_networks_stay_close(name, pattern, request):
    """Every family with random weights: half of the weights gone, outputs still those of the same network."""
    model = request.getfixturevalue(f"tiny_{name}")
    data = sample_inputs(model.ir, seed=1, dimensions={"batch": 16})
    result, notes = prune(model, data, pattern=pattern, sparsity=0.3)
    output = model.graph.outputs[0].name
    expected = run(model, data)[output]
    removed = sum((weight_of(result, key) == 0).sum() for key in result.graph.initializers if _is_float(result, key))
    assert removed > 0
    assert sqnr(expected, run(result, data)[output]) > 5
    assert len(notes.remarks) >= 3


def _is_float(model, name):
    return model.graph.initializers[name].const_value.dtype == ir.DataType.FLOAT


@given(
    depth=st.integers(1, 4),
    width=st.sampled_from([8, 12, 20]),
    residual=st.booleans(),
    shared=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=12, deadline=None)
def test_random_graphs_keep_their_form(depth, width, residual, shared, seed):
    nodes, weights, value = [], {}, "x"
    for layer in range(depth):
        name = "w0" if shared and layer % 2 == 0 else f"w{layer}"
        weights[name] = normal(width, width, seed=seed + layer)
        nodes += [node("MatMul", [value, name], f"h{layer}"), node("Tanh", [f"h{layer}"], f"r{layer}")]
        value = f"r{layer}"
        if residual:
            nodes.append(node("Add", [value, "x"], f"s{layer}"))
            value = f"s{layer}"
    nodes.append(node("Identity", [value], "y"))
    model = graph(nodes, weights, {"x": ["n", width]})
    data = {"x": correlated(60, width, seed)}
    result, _ = prune(model, data, pattern="2:4", heads=True)
    assert set(result.graph.initializers) == set(weights)
    for name in weights:
        assert TWO_OF_FOUR.holds(weight_of(result, name).T)
    assert sqnr(run(model, data)["y"], run(result, data)["y"]) > 0
