"""What each device takes, and that a compile for a device that is not here measures no time of this machine."""

import numpy as np
import onnx_ir as ir
import pytest

import edgesmith
from edgesmith.errors import MeasurementError, TargetError
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith.measure.reference import ReferenceRunner
from edgesmith_tensorrt.build_recipe import build_recipe, shell_script
from edgesmith_tensorrt.target import TensorRT
from small_graphs import graph, node


def target(name):
    return find_target(load_registry(), name)[1]


@pytest.mark.parametrize(
    ("name", "float8"),
    [("jetson-orin-nano", "none"), ("jetson-thor", "hardware"), ("h100", "hardware"), ("rtx-30", "none")],
)
def test_dialects_are_symmetric_and_know_their_formats(name, float8):
    dialect = target(name).dialect
    assert dialect.activation.symmetric
    assert dialect.activation.dtype == "int8"
    assert dialect.bias == "float"
    assert dialect.float8 == float8
    assert dialect.weight_format("int4").symmetric
    assert dialect.weight_format("int2") is None
    assert "ONNX Runtime" in dialect.refusals["int2"]
    assert ("float8" in dialect.refusals) == (float8 == "none")


def test_forms_that_tensorrt_does_not_parse_are_refused_by_node():
    inputs = {"x": ["n", 8]}
    model = graph([node("Relu", ["x"], "y")], {}, inputs)
    assert target("h100").check(model).status == "ok"
    model.graph.opset_imports[""] = 22
    assert "opset 22" in target("h100").check(model).reason


def test_integer_operators_are_refused_by_name():
    weights = {"w": np.ones((8, 8), np.uint8), "s": np.float32(1), "z": np.uint8(0)}
    quantize = [node("QuantizeLinear", ["x", "s", "z"], "q")]
    product = node("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], "p")
    model = graph([*quantize, product, node("DequantizeLinear", ["p", "s", "z"], "y")], weights, {"x": ["n", 8]})
    verdict = target("h100").check(model)
    assert verdict.status == "refuse"
    assert verdict.nodes == ("node_p",)


def test_a_target_without_a_profile_is_refused():
    with pytest.raises(TargetError, match="profile"):
        TensorRT()


def test_int8_for_a_jetson_is_symmetric_and_times_nothing(tmp_path, tiny_bert, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    inputs = {value.name: np.ones((8, 16), np.int64) for value in tiny_bert.graph.inputs}
    inputs["input_ids"] = np.random.default_rng(0).integers(0, 50, (8, 16))
    data = tmp_path / "data.npz"
    np.savez(data, **inputs)
    artifact = edgesmith.compile(
        tiny_bert, target="jetson-orin-nano", recipe="int8", data=str(data), out=tmp_path / "artifact"
    )
    row = artifact.ledger.chosen_row
    assert row.latency_ms is None
    assert row.peak_memory_bytes is None
    assert row.metric is not None
    shipped = ir.load(tmp_path / "artifact" / "model.onnx").graph
    zero_points = [each.inputs[2].const_value.numpy() for each in shipped if each.op_type == "QuantizeLinear"]
    assert zero_points
    assert all(array.dtype == np.int8 and not array.any() for array in zero_points)


def test_the_reference_runner_refuses_to_time():
    with pytest.raises(MeasurementError, match="latency"):
        ReferenceRunner().latency({}, {})
    with pytest.raises(MeasurementError, match="peak memory"):
        ReferenceRunner().peak_memory(None, {})


@pytest.mark.parametrize(("sparse", "flag"), [(True, True), (False, False)])
def test_the_build_asks_for_sparse_kernels_where_weights_are_sparse(sparse, flag):
    """The builder tries sparse kernels only under this flag, and takes them only where they are faster."""
    weight = np.random.default_rng(0).normal(0, 1, (64, 32)).astype(np.float32)
    if sparse:
        weight[0::4], weight[2::4] = 0, 0
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": weight}, {"x": ["n", 64]})
    board = target("jetson-orin-nano")
    recipe = build_recipe(model, board.device, "model.onnx")
    assert recipe["sparse_weights"] is flag
    assert ("--sparsity=enable" in shell_script(recipe)) is flag
    assert board.dialect.sparse_weights == "2:4"
