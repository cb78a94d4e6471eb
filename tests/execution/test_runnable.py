"""runnable_inputs finds sizes on which a graph runs, and sample_inputs numbers that differ."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.errors import ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import runnable_dimensions, runnable_inputs
from edgesmith.execution.sample import sample_inputs

WINDOW = """<ir_version: 10, opset_import: ["" : 20]>
g (float[batch, 1, length] x) => (float[batch, 1, rest] y)
<int64[6] pads = {0, 0, 0, 0, 0, SIZE}> {
  y = Pad<mode = "reflect">(x, pads)
}"""

ONE_HOT = """<ir_version: 10, opset_import: ["" : 20]>
g (int32[batch, length] ids) => (float[batch, length, 5] y)
<int64 depth = {5}, float[2] values = {0, 1}, int32[1, 1, 5] codes = {0, 1, 2, 3, 4}, int64[1] axis = {2}> {
BODY
}"""


def packaged(package: str, path: str, install: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"needs a model file: pip install {install}")
    return Path(spec.submodule_search_locations[0]) / path


@pytest.mark.parametrize(("pad", "length"), [(3, 16), (40, 64), (500, 576)])
def test_sizes_grow_until_the_graph_runs(pad, length):
    model = ir.from_onnx_text(WINDOW.replace("SIZE", str(pad)))
    inputs = runnable_inputs(model, seed=3)
    assert inputs["x"].shape == (2, 1, length)
    assert ReferenceSession(model).run(inputs)["y"].shape == (2, 1, length + pad)
    again, other = runnable_inputs(model, seed=3), runnable_inputs(model, seed=4)
    assert np.array_equal(inputs["x"], again["x"]) and not np.array_equal(inputs["x"], other["x"])


def test_a_graph_that_runs_on_no_size_is_an_error_with_advice():
    model = ir.from_onnx_text(WINDOW.replace("SIZE", "5000"))
    with pytest.raises(ModelError, match="runs on no random inputs") as caught:
        runnable_dimensions(model)
    assert "length" in caught.value.what and "--data" in caught.value.fix


@pytest.mark.parametrize(
    "body",
    [
        "  wide = Cast<to = 7>(ids)\n  y = OneHot(wide, depth, values)",
        "  column = Unsqueeze(ids, axis)\n  same = Equal(column, codes)\n  y = Cast<to = 1>(same)",
    ],
)
def test_indices_of_a_one_hot_code_take_all_its_values(body):
    model = ir.from_onnx_text(ONE_HOT.replace("BODY", body))
    inputs = sample_inputs(model, dimensions={"length": 50})
    assert set(np.unique(inputs["ids"])) == {0, 1, 2, 3, 4}
    assert (ReferenceSession(model).run(inputs)["y"].sum(axis=2) == 1).all()


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_16k_op15", "silero_vad_op18_ifless", "silero_vad_half"])
def test_voice_activity_detectors_run_on_what_is_found(name):
    model = ir.load(packaged("silero_vad", f"data/{name}.onnx", "silero-vad==6.2.3"))
    inputs = runnable_inputs(model)
    assert inputs["input"].shape == (2, 576)
    assert all(np.isfinite(array).all() for array in ReferenceSession(model).run(inputs).values())


def test_bytes_of_a_file_type_detector_vary():
    model = ir.load(packaged("magika", "models/standard_v3_3/model.onnx", "magika==1.0.3"))
    inputs = runnable_inputs(model)
    assert np.unique(inputs["bytes"]).size == 257
    scores = ReferenceSession(model).run(inputs)
    assert all(np.isfinite(array).all() for array in scores.values())
