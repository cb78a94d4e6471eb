"""What NVIDIA's own compiler takes, tried form by form, and how the target asks it. It runs without a GPU."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.errors import TargetError
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_tensorrt import engine, gate
from edgesmith_tensorrt.build_recipe import build_recipe, optimization_shapes, shell_script
from small_graphs import context, graph, node

needs_compiler = pytest.mark.skipif(
    not any(gate.importlib.util.find_spec(name) for name in gate.COMPILERS),
    reason="TensorRT for RTX is not installed: pip install 'edgesmith[tensorrt-rtx]'",
)

WIDTH = 64


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Engines of tests do not go to the user's cache."""
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))


def tensor(name, array, dtype=None):
    """Return an initializer; `dtype` for codes that NumPy has no type for."""
    if dtype is None:
        return numpy_helper.from_array(np.asarray(array), name)
    return helper.make_tensor(name, dtype, np.shape(array), np.asarray(array).ravel().tolist())


def weight():
    return np.random.default_rng(0).normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32)


def save(folder, nodes, initializers, opset=21, input_type=TensorProto.FLOAT):
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", input_type, [16, WIDTH])],
            [helper.make_tensor_value_info("y", input_type, [16, WIDTH])],
            initializers,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=13 if opset > 23 else 10,
    )
    onnx.save(proto, folder / "model.onnx")
    (folder / "build.json").write_text(json.dumps({"model": "model.onnx", "shapes": {}}), encoding="utf-8")


def quantized(folder, *, activation=np.int8, zero=0, weights="int8", block=None, opset=21):
    """Write x -> Q -> DQ -> MatMul <- DQ <- weight in one form."""
    kinds = {"int8": np.int8, "uint8": np.uint8, "float8": ml_dtypes.float8_e4m3fn, "float8e5m2": ml_dtypes.float8_e5m2}
    packed = {"int4": TensorProto.INT4, "uint4": TensorProto.UINT4, "int2": TensorProto.INT2}
    shape = (WIDTH // block, WIDTH) if block else (WIDTH,)
    scale = tensor("ws", np.full(shape, 0.01, np.float32))
    attributes = {"axis": 0, "block_size": block} if block else {"axis": 1}
    codes = np.random.default_rng(1).integers(
        -1 if weights == "int2" else -7 if "4" in weights else -100, 1 + 1, (WIDTH, WIDTH)
    )
    codes = np.abs(codes) if weights.startswith("u") else codes
    if weights in packed:
        w, wz = tensor("w", codes, packed[weights]), tensor("wz", np.zeros(shape, int), packed[weights])
    else:
        w, wz = tensor("w", codes.astype(kinds[weights])), tensor("wz", np.zeros(shape, kinds[weights]))
    nodes, initializers = [], [w, wz, scale]
    source = "x"
    if activation is not None:
        initializers += [tensor("s", np.float32(0.02)), tensor("z", np.asarray(zero, activation))]
        nodes += [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "d")]
        source = "d"
    nodes += [node("DequantizeLinear", ["w", "ws", "wz"], "wd", **attributes), node("MatMul", [source, "wd"], "y")]
    save(folder, nodes, initializers, opset)


def ask(folder, capability="8.6"):
    command = [sys.executable, engine.__file__, "--recipe", str(folder / "build.json"), "--check"]
    command += ["--compute-capability", capability, "--module", "tensorrt_rtx", "--module", "tensorrt_rtx_bindings"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == {"built": 0, "rejected": 1}[facts["status"]]
    return facts


FORMS = [
    # form, compute capability, whether it builds
    ({}, "8.6", True),
    ({"weights": "int8", "activation": None}, "8.6", True),
    ({"weights": "int8", "activation": None, "block": 32}, "8.6", True),
    ({"zero": 3}, "8.6", False),
    ({"activation": np.uint8, "zero": 3}, "8.6", False),
    # Not in NVIDIA's documentation, which names int8 only, so our dialect does not use it.
    ({"activation": np.uint8}, "8.6", True),
    ({"weights": "uint8", "activation": None}, "8.6", False),
    ({"weights": "int4", "activation": None, "block": 32}, "8.6", True),
    ({"weights": "int4", "activation": None, "block": 32}, "7.5", False),
    ({"weights": "uint4", "activation": None, "block": 32}, "8.6", False),
    ({"weights": "int2", "activation": None, "opset": 25}, "12.0", False),
    ({"weights": "float8", "activation": ml_dtypes.float8_e4m3fn}, "8.9", True),
    ({"weights": "float8", "activation": ml_dtypes.float8_e4m3fn}, "8.6", False),
    ({"weights": "float8e5m2", "activation": ml_dtypes.float8_e5m2}, "8.9", False),
]


@needs_compiler
@pytest.mark.parametrize(("form", "capability", "builds"), FORMS)
def test_the_compiler_takes_what_the_dialect_says(tmp_path, form, capability, builds):
    quantized(tmp_path, **form)
    facts = ask(tmp_path, capability)
    assert (facts["status"] == "built") == builds, facts


@needs_compiler
def test_a_bias_in_int32_is_rejected_at_its_node(tmp_path):
    weights = [tensor("w", weight()), tensor("b", np.zeros(WIDTH, np.int32)), tensor("bs", np.float32(0.01))]
    save(tmp_path, [node("DequantizeLinear", ["b", "bs"], "bd"), node("Gemm", ["x", "w", "bd"], "y")], weights)
    facts = ask(tmp_path)
    assert facts["status"] == "rejected"
    assert facts["stage"] == "parse"
    assert facts["errors"][0]["node"] == "node_bd"


@needs_compiler
def test_an_operator_of_onnx_runtime_is_named(tmp_path):
    save(tmp_path, [helper.make_node("Unheard", ["x"], ["y"], "mine", domain="com.microsoft")], [])
    (error,) = ask(tmp_path)["errors"]
    assert (error["node"], error["operator"]) == ("mine", "Unheard")


@needs_compiler
@pytest.mark.parametrize(("name", "proxy"), [("jetson-orin-nano", True), ("rtx-40", False)])
def test_lowering_says_who_was_asked_and_never_calls_a_proxy_a_validation(name, proxy, tmp_path):
    _, target = find_target(load_registry(), name)
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": weight()}, {"x": ["batch", WIDTH]})
    used = context(None, {"x": np.random.default_rng(2).normal(size=(4, WIDTH)).astype(np.float32)}, target.dialect)
    used = type(used)(options=None, dialect=target.dialect, scratch=tmp_path, calibration=used.calibration)
    target.lower(model, used)
    (remark,) = [text for text in used.notes.remarks if "compute capability" in text]
    assert ("proxy" in remark) == proxy
    assert "parsed and built" in remark


@needs_compiler
def test_a_graph_that_the_compiler_rejects_is_refused_with_its_node(tmp_path):
    _, target = find_target(load_registry(), "rtx-40")
    weights = {"s": np.float32(0.1), "z": np.int8(3)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "y")]
    model = graph(nodes, weights, {"x": ["batch", 8]})
    used = context(None, None, target.dialect)
    used = type(used)(options=None, dialect=target.dialect, scratch=tmp_path)
    with pytest.raises(TargetError, match="node_q"):
        target.lower(model, used)


def test_without_a_compiler_the_report_says_that_none_was_asked(tmp_path, monkeypatch):
    _, target = find_target(load_registry(), "jetson-orin-nano")
    monkeypatch.setattr(gate, "COMPILERS", ("no_such_compiler",))
    answer = gate.ask_compiler(tmp_path, target.device)
    assert answer.status == "missing"
    assert "only documented rules" in answer.remark()


def test_a_compiler_that_dies_is_contained(tmp_path, monkeypatch):
    _, target = find_target(load_registry(), "jetson-orin-nano")
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", encoding="utf-8")
    monkeypatch.setattr(gate, "COMPILERS", ("json",))
    monkeypatch.setattr(gate.engine, "__file__", str(crash))
    answer = gate.ask_compiler(tmp_path, target.device)
    assert answer.status == "missing"
    assert "-11" in answer.message


def test_missing_tensorrt_is_an_answer_not_a_traceback(tmp_path):
    save(tmp_path, [node("Relu", ["x"], "y")], [])
    command = [sys.executable, engine.__file__, "--recipe", str(tmp_path / "build.json"), "--module", "no_tensorrt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == engine.MISSING
    assert "no_tensorrt" in json.loads(done.stdout)["errors"][0]["message"]
    assert not done.stderr


def test_shapes_cover_batches_and_lengths(tiny_bert):
    shapes = optimization_shapes(tiny_bert)
    assert set(shapes) == {value.name for value in tiny_bert.graph.inputs}
    for each in shapes.values():
        assert each["min"] == [1, 1]
        assert each["max"] == [8, 64]  # the table of positions has 64 rows
        assert all(low <= best <= high for low, best, high in zip(each["min"], each["opt"], each["max"], strict=True))


def test_the_shell_script_is_valid_and_quotes_names(tmp_path):
    _, target = find_target(load_registry(), "jetson-agx-orin")
    model = graph([node("Relu", ["x y; rm -rf z"], "y")], {}, {"x y; rm -rf z": ["n", 4]})
    script = tmp_path / "build.sh"
    script.write_text(shell_script(build_recipe(model, target.device, "model.onnx")), encoding="utf-8")
    shown = tmp_path / "fake_trtexec"
    shown.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    shown.chmod(0o755)
    done = subprocess.run(
        ["sh", str(script)],
        env={"TRTEXEC": str(shown), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.splitlines()
    assert "--stronglyTyped" in words
    assert "--minShapes=x y; rm -rf z:1x4" in words


def test_the_shell_script_finds_trtexec_on_the_path_and_forgets_the_record_of_another_engine(tmp_path):
    _, target = find_target(load_registry(), "jetson-agx-orin")
    model = graph([node("Relu", ["x"], "y")], {}, {"x": [1, 4]})
    script = tmp_path / "build.sh"
    script.write_text(shell_script(build_recipe(model, target.device, "model.onnx")), encoding="utf-8")
    words = ["sh", str(script)]
    bare = subprocess.run(words, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert "/usr/src/tensorrt/bin/trtexec" in bare.stderr  # where JetPack has it, and nothing is on the path
    (tmp_path / "engine.json").write_text("{}")
    (tmp_path / "trtexec").write_text("#!/bin/sh\necho built\n", encoding="utf-8")
    (tmp_path / "trtexec").chmod(0o755)
    found = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(words, env=found, capture_output=True, text=True, check=True)
    assert done.stdout == "built\n"
    assert not (tmp_path / "engine.json").exists()


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "status"),
    [
        (TensorProto.INT16, "rejected"),
        (TensorProto.UINT32, "rejected"),
        (TensorProto.FLOAT8E5M2, "rejected"),
        (TensorProto.DOUBLE, "built"),
    ],
)
def test_the_compiler_lacks_the_types_that_the_rule_says_nobody_has(tmp_path, dtype, status):
    save(tmp_path, [node("Cast", ["x"], "c", to=dtype), node("Cast", ["c"], "y", to=TensorProto.FLOAT)], [])
    assert ask(tmp_path, "12.0")["status"] == status


@needs_compiler
def test_the_reason_is_told_and_not_the_missing_driver(tmp_path):
    quantized(tmp_path, weights="float8", activation=ml_dtypes.float8_e4m3fn)
    messages = [error["message"] for error in ask(tmp_path, "8.6")["errors"]]
    assert any("fp8_e4m3" in message for message in messages), messages
    assert not any("driver" in message for message in messages)
