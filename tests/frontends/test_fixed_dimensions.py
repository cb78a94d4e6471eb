"""Open dimensions of the inputs get sizes, and everything that follows from them is computed once."""

import numpy as np
import pytest

from edgesmith.errors import ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.frontends.fixed_dimensions import fix_dimensions, open_dimensions
from edgesmith.model import Model
from edgesmith_calibration.preprocessing import TextPreprocessing
from small_graphs import graph, node, operators

FAMILIES = {
    "tiny_bert": {"batch": 2, "sequence": 12},
    "tiny_gpt2": {"batch": 1, "sequence": 9},
    "tiny_llama": {"batch": 1, "sequence": 9},
    "tiny_vit": {"batch": 2},
    "tiny_cnn": {"batch": 3},
}


@pytest.mark.parametrize("fixture", FAMILIES)
def test_outputs_stay_what_they_are_at_that_size(fixture, request):
    model = request.getfixturevalue(fixture)
    sizes = FAMILIES[fixture]
    assert set(open_dimensions(model.ir)) == set(sizes)
    fixed = fix_dimensions(model, sizes)
    assert not open_dimensions(fixed.ir)
    for value in (*fixed.graph.inputs, *fixed.graph.outputs):
        assert value.shape.is_static()
    inputs = sample_inputs(fixed.ir, seed=3)
    if "attention_mask" in inputs:
        inputs["attention_mask"][0, -3:] = 0
    expected, actual = (ReferenceSession(each.ir).run(inputs) for each in (model, fixed))
    assert list(expected) == list(actual)
    for name, reference in expected.items():
        np.testing.assert_allclose(actual[name], reference, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_shapes_is_computed_at_run_time_any_more(tiny_vit):
    assert operators(tiny_vit)["Shape"] > 0
    assert operators(fix_dimensions(tiny_vit, {"batch": 1}))["Shape"] == 0


def test_the_source_is_not_changed(tiny_bert):
    digest = tiny_bert.digest()
    fix_dimensions(tiny_bert, {"batch": 1, "sequence": 8})
    assert tiny_bert.digest() == digest


def test_a_size_may_be_given_to_some_dimensions_alone(tiny_bert):
    fixed = fix_dimensions(tiny_bert, {"sequence": 8})
    assert set(open_dimensions(fixed.ir)) == {"batch"}
    assert any("sequence = 8" in remark for remark in fixed.provenance.remarks)


def test_a_model_says_which_sizes_were_written_also_after_it_was_saved(tmp_path):
    model = graph([node("Relu", ["x"], "y")], {}, {"x": ["n", "m"]})
    assert model.provenance.fixed_sizes == {}
    fixed = fix_dimensions(fix_dimensions(model, {"n": 4}), {"m": 3})
    assert Model.load(fixed.save(tmp_path / "m")).provenance.fixed_sizes == {"n": 4, "m": 3}


def test_dimensions_without_a_name_are_told_by_input_and_axis():
    model = graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 3]})
    model.graph.inputs[0].shape = type(model.graph.inputs[0].shape)([None, 3])
    assert open_dimensions(model.ir) == {"x:0": ("x", 0)}
    assert list(fix_dimensions(model, {"x:0": 5}).graph.outputs[0].shape) == [5, 3]


@pytest.mark.parametrize("sizes", [{"no such": 1}, {"batch": 0}, {"batch": -2}])
def test_wrong_sizes_are_refused_with_the_names_there_are(sizes, tiny_bert):
    with pytest.raises(ModelError, match="batch, sequence"):
        fix_dimensions(tiny_bert, sizes)


def test_a_size_that_the_graph_cannot_have_is_refused(tiny_bert):
    with pytest.raises(ModelError, match="does not load"):
        fix_dimensions(tiny_bert, {"batch": 1, "sequence": 200})  # the table of positions has 64 rows


def test_texts_are_cut_and_padded_to_the_new_length(tiny_bert):
    preprocessing = TextPreprocessing(max_length=64, pad_to="longest")
    task = tiny_bert.task.model_copy(update={"preprocessing": preprocessing})
    model = type(tiny_bert)(tiny_bert.ir, task, tiny_bert.provenance)
    fixed = fix_dimensions(model, {"batch": 1, "sequence": 8}).task.preprocessing
    assert (fixed.max_length, fixed.pad_to) == (8, "max_length")
    assert fix_dimensions(model, {"batch": 1}).task.preprocessing == preprocessing
