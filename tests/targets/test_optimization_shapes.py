"""Optimization profiles: every bound is a shape on which the graph runs, and data decides what they are tuned for.

The largest of a decoder with caches is the exception: it holds the longest prompt and the longest cache at once.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.folding.cached_models import cached_decoder

from edgesmith.data import RandomInputs
from edgesmith.host.context import Context
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith.testing.builder import GraphBuilder
from edgesmith_calibration.sources import CallableSource, Layout
from edgesmith_tensorrt import gate
from edgesmith_tensorrt.lints.dynamic_shapes import find
from edgesmith_tensorrt.optimization_shapes import optimization_shapes
from small_graphs import graph, node, run

LSTM_INPUTS = ["x", "w", "r", "bias", "", "state"]


def convolution(sizes, kernel):
    weights = {"w": np.ones((2, 3, *kernel), np.float32)}
    nodes = [node("Conv", ["x", "w"], "c"), node("GlobalAveragePool", ["c"], "y")]
    return graph(nodes, weights, {"x": ["n", 3, *sizes]})


def recurrent(time, batch):
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(1, 32, 16)).astype(np.float32),
        "r": random.normal(size=(1, 32, 8)).astype(np.float32),
        "bias": np.zeros((1, 64), np.float32),
    }
    nodes = [node("LSTM", LSTM_INPUTS, "y", hidden_size=8)]
    return graph(nodes, weights, {"x": [time, batch, 16], "state": [1, batch, 8]})


def require_every_bound_runs(model, shapes):
    for bound in ("min", "opt", "max"):
        run(model, {name: np.zeros(each[bound], np.float32) for name, each in shapes.items()})
    for each in shapes.values():
        assert all(low <= usual <= high for low, usual, high in zip(each["min"], each["opt"], each["max"], strict=True))


@pytest.mark.parametrize(
    ("sizes", "kernel", "usual"),
    [
        (["t"], (1,), 128),
        (["t"], (7,), 128),
        (["t"], (100,), 128),
        (["t"], (200,), 512),
        (["h", "w"], (5, 5), 224),
        (["h", "w"], (30, 3), 224),
    ],
)
def test_windows_that_rule_out_short_signals_leave_profiles_that_run(sizes, kernel, usual):
    model = convolution(sizes, kernel)
    shapes = optimization_shapes(model)
    require_every_bound_runs(model, shapes)
    assert shapes["x"]["opt"] == [1, 3, *[usual] * len(sizes)]
    assert kernel[0] <= shapes["x"]["min"][-1] < shapes["x"]["max"][-1] == 512


def test_a_graph_that_takes_few_lengths_gets_only_those():
    model = graph([node("Add", ["x", "w"], "y")], {"w": np.zeros((1, 64), np.float32)}, {"x": ["b", "t"]})
    shapes = optimization_shapes(model)
    require_every_bound_runs(model, shapes)
    assert {shapes["x"][bound][1] for bound in shapes["x"]} <= {1, 64}


@pytest.mark.parametrize(("time", "batch"), [("t", "b"), ("t", "batch_size"), ("frames", "n")])
def test_the_batch_of_a_recurrent_graph_is_its_second_dimension(time, batch):
    model = recurrent(time, batch)
    shapes = optimization_shapes(model)
    assert shapes["x"] == {"min": [1, 1, 16], "opt": [128, 1, 16], "max": [512, 8, 16]}
    assert shapes["state"] == {"min": [1, 1, 8], "opt": [1, 1, 8], "max": [1, 8, 8]}
    require_every_bound_runs(model, shapes)


def test_a_graph_that_is_written_for_one_sample_gets_no_batch_of_eight():
    weights = {"shape": np.array([1, -1], np.int64), "w": np.ones((16, 4), np.float32)}
    nodes = [node("Reshape", ["x", "shape"], "r"), node("MatMul", ["r", "w"], "y")]
    assert optimization_shapes(graph(nodes, weights, {"x": ["n", 16]}))["x"]["max"] == [1, 16]


def test_samples_decide_what_is_tuned_for_and_stay_inside():
    sizes = [(40, 700), (96, 160), (96, 160), (96, 160), (5, 300)]
    source = CallableSource(lambda: ({"x": np.zeros((3, *size), np.float32)} for size in sizes), Layout(("x",)))
    shapes = optimization_shapes(convolution(["h", "w"], (3, 3)), source)["x"]
    assert shapes == {"min": [1, 3, 5, 5], "opt": [1, 3, 96, 160], "max": [8, 3, 700, 700]}


def test_random_inputs_are_no_example():
    model = convolution(["t"], (3,))
    assert optimization_shapes(model, RandomInputs(model)) == optimization_shapes(model)


def masked_decoder():
    """Return one attention with a cache, its keys its values too; the mask is over earlier tokens and new ones."""
    builder = GraphBuilder(past=("batch", "past", 8))
    builder.input("ids", ("batch", "new"), ir.DataType.INT64.value)
    builder.input("mask", ("batch", "all"), ir.DataType.INT64.value)
    new = builder.add("Gather", builder.weight("table", 16, 8), "ids")
    keys = builder.add("Concat", "past", new, axis=1)
    scores = builder.add("MatMul", new, builder.add("Transpose", keys, perm=[0, 2, 1]))
    hidden = builder.add("Equal", "mask", builder.number(0, np.int64))
    hidden = builder.add("Unsqueeze", hidden, builder.integers(1))
    masked = builder.add("Where", hidden, builder.number(-9.0), scores)
    logits = builder.add("MatMul", builder.add("Softmax", masked, axis=-1), keys)
    return Model(builder.finish(logits, keys), Task(), Provenance("masked", "testing", ""))


def windows_for(count, length, past=0):
    one = {"ids": np.ones(length, np.int64), "mask": np.ones(past + length, np.int64), "past": np.ones((past, 8), "f")}
    return CallableSource(lambda: (one for _ in range(count)), Layout(tuple(one)))


def test_a_decoder_may_start_with_nothing_and_go_on_by_one_token():
    model = masked_decoder()
    shapes = optimization_shapes(model, windows_for(3, 32))
    assert shapes["ids"] == {"min": [1, 1], "opt": [1, 1], "max": [8, 512]}
    assert shapes["past"] == {"min": [1, 0, 8], "opt": [1, 31, 8], "max": [8, 512, 8]}
    assert shapes["mask"] == {"min": [1, 1], "opt": [1, 32], "max": [8, 1024]}
    types = {"ids": np.int64, "mask": np.int64, "past": np.float32}
    for bound in ("min", "opt", "max"):
        run(model, {name: np.ones(each[bound], types[name]) for name, each in shapes.items()})
    assert optimization_shapes(model)["ids"] == shapes["ids"]


@pytest.mark.parametrize("new", [1, 4])
def test_samples_with_a_filled_cache_decide_what_a_decoder_is_tuned_for(new):
    shapes = optimization_shapes(masked_decoder(), windows_for(3, new, past=20))
    assert {name: shapes[name]["opt"][1] for name in shapes} == {"ids": new, "mask": new + 20, "past": 20}
    assert {name: shapes[name]["min"][1] for name in shapes} == {"ids": 1, "mask": 1, "past": 0}


@pytest.mark.parametrize(("form", "axis"), [("apart", 2), ("tokens first", 1)])
def test_caches_of_either_form_may_be_empty_while_one_token_is_new(form, axis):
    model = cached_decoder("gpt", form)
    shapes = optimization_shapes(model)
    assert shapes["input_ids"] == {"min": [1, 1], "opt": [1, 1], "max": [8, 64]}
    assert [shapes["in0"][bound][axis] for bound in ("min", "opt", "max")] == [0, 63, 64]


def test_without_a_compiler_the_recipe_of_an_image_model_is_sound(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_is_installed", lambda module: False)
    _, target = find_target(load_registry(), "jetson-orin-nano")
    lowered = target.lower(convolution(["h", "w"], (5, 5)), Context(None, target.dialect, tmp_path))
    assert not list(find(lowered, target.dialect))


def test_a_published_graph_of_speech_gets_a_profile_that_runs():
    spec = find_spec("silero_vad")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("needs a model file: pip install silero-vad")
    model = Model.load(Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.onnx")
    shapes = optimization_shapes(model)
    assert shapes["input"] == {"min": [1, 256], "opt": [1, 512], "max": [8, 512]}
    assert shapes["state"] == {"min": [2, 1, 128], "opt": [2, 1, 128], "max": [2, 8, 128]}
