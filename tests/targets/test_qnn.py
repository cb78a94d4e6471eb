"""Qualcomm's tensor processor: what the target refuses, says and writes, and what the simulator computes.

Tests with `needs_simulator` run where onnxruntime-qnn is installed: pip install edgesmith[qnn]
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.errors import TargetError
from edgesmith.execution.sample import sample_inputs
from edgesmith.frontends.fixed_dimensions import fix_dimensions
from edgesmith.host.lint import run_lints
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith.profile import load_profile
from edgesmith_onnxruntime.qnn import context as context_script
from edgesmith_onnxruntime.qnn import simulator
from edgesmith_onnxruntime.qnn import target as target_module
from edgesmith_onnxruntime.qnn.factor_order import write_factors_second
from edgesmith_onnxruntime.qnn.target import PROFILE, AndroidQnn
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from small_graphs import context, graph, node, operators, run

needs_simulator = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None, reason="pip install edgesmith[qnn]"
)

WIDTH = 32


def weight(seed=0):
    return np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)).astype(np.float32)


def product(**weights):
    return graph([node("MatMul", ["x", "w"], "y")], {"w": weight(), **weights}, {"x": [1, WIDTH]})


def batches(model, count=4):
    """Return data for a model of batch 1: as many different samples."""
    parts = [sample_inputs(model.ir, seed=seed) for seed in range(count)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def quantized(model, data):
    dialect = AndroidQnn().dialect
    return QuantizeInt8().apply(model, context(QuantizeInt8Options(), data, dialect))


def used_context(data, folder, target):
    used = context(None, data, target.dialect)
    return replace(used, scratch=folder)


def lints(model):
    registry = load_registry()
    record, target = find_target(registry, "android-qnn")
    return [
        each.finding for each in run_lints(registry, record, model, target.dialect) if each.lint == "tensor-processor"
    ]


def test_every_architecture_is_named_once():
    names = [each.name for each in load_profile(PROFILE).hexagon.architectures]
    assert names == sorted(set(names))
    assert not load_profile(PROFILE).hexagon.architectures[0].float16


def test_a_profile_without_architectures_is_refused():
    with pytest.raises(TargetError, match="architectures"):
        AndroidQnn(load_profile("edgesmith_onnxruntime:profiles/android-cpu.toml"))


REFUSED = {
    "open": (graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 4]}), "--shape"),
    "dynamic": (
        graph(
            [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "d"), node("Identity", ["s"], "y")],
            {},
            {"x": [1, 4]},
        ),
        "mode: static",
    ),
    "int4": (
        graph(
            [node("DequantizeLinear", ["w", "s"], "wd", axis=0, block_size=16), node("MatMul", ["x", "wd"], "y")],
            {"s": np.ones((2, WIDTH), np.float32), "w": np.zeros((WIDTH, WIDTH), np.int8)},
            {"x": [1, WIDTH]},
            opset=21,
        ),
        "int4",
    ),
    "opset": (graph([node("Relu", ["x"], "y")], {}, {"x": [1, 4]}, opset=23), "opset 23"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_provider_does_not_take_is_refused_with_a_way_out(case):
    model, words = REFUSED[case]
    if case == "int4":
        tensor = helper.make_tensor("w", TensorProto.INT4, [WIDTH, WIDTH], [1] * WIDTH**2)
        import onnx_ir as ir

        model.graph.initializers["w"].const_value = ir.from_proto(tensor)
        model.graph.initializers["w"].type = ir.TensorType(ir.DataType.INT4)
    verdict = AndroidQnn().check(model)
    assert verdict.status == "refuse"
    assert words in verdict.reason


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_cnn"])
def test_a_graph_lowered_for_processors_is_refused_by_name(fixture, request):
    from small_graphs import lower, quantize

    model = fix_dimensions(request.getfixturevalue(fixture), {"batch": 1} | ({"sequence": 8} if "b" in fixture else {}))
    verdict = AndroidQnn().check(lower(quantize(model, sample_inputs(model.ir))))
    assert verdict.status == "refuse"
    assert verdict.nodes


@pytest.mark.parametrize("bits", ["int8", "int4", "int2", "float8"])
def test_methods_hear_why_a_format_is_not_there(bits):
    dialect = AndroidQnn().dialect
    if bits == "int8":
        assert dialect.weight.dtype == "int8" and dialect.activation.dtype == "uint8"
    else:
        assert "use quantize-int8" in dialect.refusals[bits]
    assert dialect.weight_format(bits) is None


def test_dynamic_quantization_is_refused_by_the_method(tiny_cnn):
    verdict = QuantizeInt8().check(tiny_cnn, context(QuantizeInt8Options(mode="dynamic"), None, AndroidQnn().dialect))
    assert verdict.status == "refuse"
    assert "static" in verdict.reason


def test_pairs_stand_on_inputs_and_outputs_of_every_product(tiny_cnn):
    model = fix_dimensions(tiny_cnn, {"batch": 1})
    result = quantized(model, batches(model))
    for each in result.graph:
        if each.op_type in ("Conv", "Gemm"):
            assert all(value.producer().op_type == "DequantizeLinear" for value in each.inputs)
            behind = {use.node.op_type for use in each.outputs[0].uses()}
            assert behind <= {"QuantizeLinear", "Clip", "Relu"}
    assert not lints(result)


@pytest.mark.parametrize("bits", [8, 16])
def test_no_lint_finds_fault_with_codes_of_either_width(bits, tiny_cnn):
    model = fix_dimensions(tiny_cnn, {"batch": 1})
    registry = load_registry()
    record, target = find_target(registry, "android-qnn")
    used = context(QuantizeInt8Options(activation_bits=bits), batches(model), target.dialect)
    result = QuantizeInt8().apply(model, used)
    assert target.check(result).status == "ok"
    found = {each.lint for each in run_lints(registry, record, result, target.dialect)}
    assert "code-types" not in found and "tensor-processor" not in found


def test_lints_name_what_stays_on_the_processor():
    odd = graph([node("Det", ["x"], "y")], {}, {"x": [1, 3, 3]})
    (finding,) = lints(odd)
    assert "Det" in finding.hazard and finding.nodes == ("node_y",)
    (finding,) = lints(REFUSED["open"][0])
    assert "--shape n=SIZE" in finding.fix
    assert any("mode: static" in each.fix for each in lints(REFUSED["dynamic"][0]))
    codes = {"q": np.ones((WIDTH, WIDTH), np.int8), "s": np.ones(WIDTH, np.float32), "z": np.zeros(WIDTH, np.int8)}
    nodes = [node("DequantizeLinear", ["q", "s", "z"], "wd", axis=1), node("MatMul", ["x", "wd"], "y")]
    (finding,) = lints(graph(nodes, codes, {"x": [1, WIDTH]}))
    assert "dequantized on the processor" in finding.hazard
    (finding,) = lints(graph([node("Transpose", ["x"], "y", perm=[5, 4, 3, 2, 1, 0])], {}, {"x": [1, 2, 1, 2, 1, 2]}))
    assert "dimensions" in finding.hazard
    assert not lints(product())


def test_build_writes_what_the_script_needs(tmp_path, tiny_cnn):
    model = fix_dimensions(tiny_cnn, {"batch": 1})
    target = AndroidQnn()
    float_recipe = target.build(model, tmp_path).recipe
    assert "v68" not in [each["name"] for each in float_recipe["architectures"]]  # has no float16
    assert json.loads((tmp_path / "build.json").read_text()) == float_recipe
    second = tmp_path / "second"
    second.mkdir()
    assert target.build(quantized(model, batches(model)), second).recipe["architectures"][0]["name"] == "v68"
    assert (tmp_path / "build_context.py").read_text() == Path(context_script.__file__).read_text()


def test_without_the_simulator_the_report_says_so(tmp_path, tiny_cnn, monkeypatch):
    monkeypatch.setattr(simulator, "PACKAGE", "no_such_package")
    target = AndroidQnn()
    used = used_context(None, tmp_path, target)
    target.lower(fix_dimensions(tiny_cnn, {"batch": 1}), used)
    assert any("only documented rules" in remark for remark in used.notes.remarks)
    target.build(fix_dimensions(tiny_cnn, {"batch": 1}), tmp_path)
    assert "edgesmith[qnn]" in str(target.finish(tmp_path)["contexts"])


def test_a_large_model_is_left_to_the_script(tmp_path, tiny_cnn, monkeypatch):
    monkeypatch.setattr(target_module, "LARGEST_BYTES_AT_ONCE", 10)
    target = AndroidQnn()
    target.build(fix_dimensions(tiny_cnn, {"batch": 1}), tmp_path)
    assert "build_context.py" in str(target.finish(tmp_path)["contexts"])


def test_a_runtime_that_dies_is_contained(tmp_path, monkeypatch, tiny_cnn):
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", encoding="utf-8")
    monkeypatch.setattr(simulator, "PACKAGE", "json")
    monkeypatch.setattr(context_script, "__file__", str(crash))
    target = AndroidQnn()
    used = used_context(None, tmp_path, target)
    target.lower(fix_dimensions(tiny_cnn, {"batch": 1}), used)
    assert any("-11" in remark for remark in used.notes.remarks)


def test_what_the_compiler_rejects_is_an_error_with_its_words(tmp_path, monkeypatch, tiny_cnn):
    answer = tmp_path / "answer.py"
    answer.write_text('print(\'{"status": "rejected", "message": "no such thing"}\')\n', encoding="utf-8")
    monkeypatch.setattr(simulator, "PACKAGE", "json")
    monkeypatch.setattr(context_script, "__file__", str(answer))
    target = AndroidQnn()
    with pytest.raises(TargetError, match="no such thing"):
        target.lower(fix_dimensions(tiny_cnn, {"batch": 1}), used_context(None, tmp_path, target))


def test_the_script_answers_where_the_runtime_is_missing(tmp_path, tiny_cnn):
    AndroidQnn().build(fix_dimensions(tiny_cnn, {"batch": 1}), tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "onnxruntime_qnn.py").write_text("raise ImportError('not here')\n")
    command = [sys.executable, str(tmp_path / "build_context.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(hidden)}, check=False)
    assert done.returncode == context_script.MISSING
    assert json.loads(done.stdout.splitlines()[-1])["message"] == "not here"
    wrong = subprocess.run([*command, "--architecture", "v12"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "v73" in wrong.stderr


@needs_simulator
@pytest.mark.parametrize("form", ["float", "int8"])
def test_the_simulator_computes_what_the_processor_does(form, tmp_path, tiny_cnn):
    target = AndroidQnn()
    model = fix_dimensions(tiny_cnn, {"batch": 1})
    data = batches(model)
    model = quantized(model, data) if form == "int8" else model
    used = used_context(data, tmp_path, target)
    lowered = target.lower(model, used)
    assert operators(lowered) == operators(model)
    (remark,) = [text for text in used.notes.remarks if "simulator" in text]
    assert "tier simulated" in remark and "1 part on the tensor processor" in remark and "4 samples" in remark
    answer = simulator.run(tmp_path / "simulator", lowered, target.hexagon, used)
    # float16 keeps 11 bits; a code may move by one of 256 where sums round apart.
    assert max(answer.errors) < (2**-8 if form == "float" else 0.05)
    assert answer.outside == ({} if form == "float" else {"QuantizeLinear": 1, "DequantizeLinear": 1})


@needs_simulator
def test_the_simulator_keeps_16_bits_in_codes(tmp_path, tiny_cnn):
    """Bounds behind convolutions are left to the codes: else Qualcomm's compiler takes weights in float."""
    target = AndroidQnn()
    model = fix_dimensions(tiny_cnn, {"batch": 1})
    data = batches(model)
    options = QuantizeInt8Options(activation_bits=16)
    model = QuantizeInt8().apply(model, context(options, data, target.dialect))
    target.build(model, tmp_path)
    answer = simulator.run(tmp_path, model, target.hexagon, used_context(data, tmp_path, target))
    assert answer.parts == 1
    assert answer.outside == {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert max(answer.errors) < 2**-8  # as float16 has it


@needs_simulator
def test_attention_with_16_bits_is_built_for_all_that_have_float16(tmp_path, tiny_bert):
    target = AndroidQnn()
    model = fix_dimensions(tiny_bert, {"batch": 1, "sequence": 8})
    data = batches(model)
    used = used_context(data, tmp_path, target)
    model = QuantizeInt8().apply(model, context(QuantizeInt8Options(), data, target.dialect))
    lowered = target.lower(model, used)
    (remark,) = [text for text in used.notes.remarks if "simulator" in text]
    assert "1 part on the tensor processor" in remark
    target.build(lowered, tmp_path)
    contexts = target.finish(tmp_path)["contexts"]
    status = {each.name: contexts[each.name]["status"] for each in target.hexagon.architectures}
    assert status == {"v68": "rejected"} | dict.fromkeys(("v69", "v73", "v75", "v79", "v81"), "built")


def written_out_norm():
    """A root mean square norm as exporters of language models write it, with its weight as the first factor."""
    numbers = np.random.default_rng(0)
    return graph(
        [
            node("Pow", ["x", "two"], "square"),
            node("ReduceMean", ["square", "last"], "mean"),
            node("Add", ["mean", "epsilon"], "positive"),
            node("Sqrt", ["positive"], "root"),
            node("Reciprocal", ["root"], "inverse"),
            node("Mul", ["x", "inverse"], "unit"),
            node("Mul", ["gain", "unit"], "y"),
        ],
        {
            "two": np.float32(2),
            "last": np.array([-1]),
            "epsilon": np.float32(1e-6),
            "gain": numbers.normal(size=64).astype(np.float32),
        },
        {"x": [1, 8, 64]},
    )


def test_constant_factors_go_behind_what_they_multiply():
    model = written_out_norm()
    x = np.random.default_rng(1).normal(size=(1, 8, 64)).astype(np.float32)
    expected = run(model, {"x": x})["y"]
    assert write_factors_second(model.ir.graph) == 1
    unit, gain = list(model.ir.graph)[-1].inputs
    assert (unit.name, gain.name) == ("unit", "gain")
    np.testing.assert_array_equal(run(model, {"x": x})["y"], expected)
    assert write_factors_second(model.ir.graph) == 0


@pytest.mark.parametrize("inputs", [["x", "x"], ["x", "gain"], ["gain", "gain"]])
def test_products_without_a_constant_in_front_of_a_variable_are_left(inputs):
    gain = np.ones(4, np.float32)
    model = graph([node("Mul", inputs, "product"), node("Add", ["x", "product"], "y")], {"gain": gain}, {"x": [4]})
    assert write_factors_second(model.ir.graph) == 0


def test_a_factor_in_codes_counts_as_constant():
    codes = {"codes": np.ones(4, np.int8), "scale": np.float32(0.5), "zero": np.int8(0)}
    nodes = [node("DequantizeLinear", ["codes", "scale", "zero"], "gain"), node("Mul", ["gain", "x"], "y")]
    model = graph(nodes, codes, {"x": [4]})
    assert write_factors_second(model.ir.graph) == 1


def test_a_factor_that_is_cast_counts_as_constant():
    nodes = [node("Cast", ["stored"], "gain", to=1), node("Mul", ["gain", "x"], "y")]
    model = graph(nodes, {"stored": np.ones(4, np.float16)}, {"x": [4]})
    assert write_factors_second(model.ir.graph) == 1


def test_a_factor_with_a_computed_scale_is_no_constant():
    nodes = [
        node("ReduceMax", ["x"], "scale", keepdims=0),
        node("DequantizeLinear", ["codes", "scale"], "gain"),
        node("Mul", ["gain", "x"], "y"),
    ]
    model = graph(nodes, {"codes": np.ones(4, np.int8)}, {"x": [4]})
    assert write_factors_second(model.ir.graph) == 0


@needs_simulator
def test_a_norm_as_language_models_have_it_is_built(tmp_path):
    """With the weight as the first factor, Qualcomm's compiler ends with QNN_COMMON_ERROR_MEM_ALLOC."""
    target, model = AndroidQnn(), written_out_norm()
    used = used_context(batches(model), tmp_path, target)
    target.lower(model, used)
    (remark,) = [text for text in used.notes.remarks if "simulator" in text]
    assert "1 part on the tensor processor, nothing on the processor" in remark


FORMS = [
    # dtype of activations, scale of weights per channel, output quantized, whether the product stays in codes
    (np.uint8, True, True, True),
    (np.uint8, False, True, True),
    (np.uint16, True, True, True),
    (np.uint8, True, False, False),
]


@needs_simulator
@pytest.mark.parametrize(("dtype", "channels", "output", "in_codes"), FORMS)
def test_the_simulator_takes_what_the_dialect_says(dtype, channels, output, in_codes):
    """A product without codes behind it gets its weights dequantized on the processor, at every run."""
    w = weight()
    scales = np.abs(w).max(0) / 127 if channels else np.float32(np.abs(w).max() / 127)
    limits = np.iinfo(dtype)
    middle, step = dtype((limits.max + 1) // 2), np.float32(8 / limits.max)
    weights = {
        "w": np.rint(w / scales).astype(np.int8),
        "ws": np.asarray(scales, np.float32),
        "wz": np.zeros(np.shape(scales), np.int8),
        "s": step,
        "z": middle,
        "os": np.float32(80 / limits.max),
    }
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("DequantizeLinear", ["w", "ws", "wz"], "wd", **({"axis": 1} if channels else {})),
        node("MatMul", ["d", "wd"], "m" if output else "y"),
    ]
    if output:
        nodes += [node("QuantizeLinear", ["m", "os", "z"], "mq"), node("DequantizeLinear", ["mq", "os", "z"], "y")]
    answer = asked(graph(nodes, weights, {"x": [1, WIDTH]}, opset=21))
    assert answer["parts"] == 1
    assert answer["dequantized_weights"] == int(not in_codes)


def asked(model):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = AndroidQnn()
        target.build(model, folder)
        x = np.random.default_rng(1).normal(size=(1, 1, WIDTH)).astype(np.float32)
        np.savez(folder / "samples.npz", x=x)
        words = ("--samples", str(folder / "samples.npz"), "--outputs", str(folder / "outputs.npz"))
        return simulator._ask(folder, "--check", "--architecture", "v75", *words)


@needs_simulator
def test_context_binaries_differ_by_architecture_and_run_alone(tmp_path):
    target = AndroidQnn()
    target.build(product(), tmp_path)
    facts = target.finish(tmp_path)["contexts"]
    assert set(facts) == {"v69", "v73", "v75", "v79", "v81"}
    contents = set()
    for name, one in facts.items():
        proto = onnx.load(tmp_path / one["file"])
        assert [each.op_type for each in proto.graph.node] == ["EPContext"], name
        contents.add(proto.SerializeToString())
    assert len(contents) == len(facts)


@needs_simulator
def test_a_graph_that_qnn_cannot_compile_is_rejected_in_its_words(tmp_path):
    target = AndroidQnn()
    target.build(product(), tmp_path)
    proto = onnx.load(tmp_path / "model.onnx")
    proto.graph.node[0].op_type = "NoSuchOperator"
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight(), "w"))
    onnx.save(proto, tmp_path / "model.onnx")
    facts = simulator._ask(tmp_path, "--architecture", "v75")
    assert facts["status"] == "rejected"
    assert "NoSuchOperator" in facts["contexts"]["v75"]["message"]
