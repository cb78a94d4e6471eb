"""Phones: what the targets take and write, and that the ORT format computes the same."""

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from edgesmith.errors import TargetError
from edgesmith.execution.sample import sample_inputs
from edgesmith.frontends.fixed_dimensions import fix_dimensions
from edgesmith.host.lint import run_lints
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith.profile import load_profile
from edgesmith_onnxruntime.mobile import convert, ort_format
from edgesmith_onnxruntime.mobile.placement import find_placement
from edgesmith_onnxruntime.mobile.report import phone_sections
from edgesmith_onnxruntime.mobile.snippets import KOTLIN_FILE, SWIFT_FILE, write_snippets
from edgesmith_onnxruntime.mobile.target import AndroidCpu, IosCoreMl
from small_graphs import context, graph, node, operators, quantize, run

NAMES = ["onnx-cpu", "android-cpu", "android-qnn", "ios-coreml"]
PROVIDERS = ["NNAPI", "Core ML neural network", "Core ML program"]


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_names_the_source_of_its_facts(name):
    profile = load_profile(f"edgesmith_onnxruntime:profiles/{name}.toml")
    assert profile.name == name
    groups = (profile.device, profile.formats, *profile.runtimes, *([profile.hexagon] if profile.hexagon else []))
    assert all(group.source for group in groups)
    _, target = find_target(load_registry(), name)
    assert target.dialect.name == name
    assert target.dialect.opset == profile.opset


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_of_ones_own_extends_it_and_its_rules(name, tmp_path, tiny_bert):
    file = tmp_path / "mine.toml"
    file.write_text(f'extends = "{name}"\nname = "mine"\nsummary = "Mine."\n')
    registry = load_registry()
    record, target = find_target(registry, str(file))
    assert (record.name, record.extends, target.dialect.name) == ("mine", name, "mine" if name != "onnx-cpu" else name)
    found = {result.lint for result in run_lints(registry, record, tiny_bert, target.dialect)}
    expected = {"ios-coreml": "core-ml-placement", "android-qnn": "tensor-processor"}.get(name)
    assert expected is None or expected in found


def shipped(target, model, folder):
    folder.mkdir(exist_ok=True)
    target.build(model, folder)
    return target.finish(folder)


@pytest.mark.parametrize(("fixture", "mode"), [("tiny_bert", "float"), ("tiny_cnn", "int8")])
def test_the_ort_format_has_the_bits_of_the_graph(fixture, mode, request, tmp_path):
    model = request.getfixturevalue(fixture)
    inputs = sample_inputs(model.ir)
    if mode == "int8":
        model = quantize(model, inputs)
    target = AndroidCpu()
    lowered = target.lower(model, context(None, inputs, target.dialect))
    facts = shipped(target, lowered, tmp_path / "a")["ort_format"]
    assert facts["relative_errors"] and set(facts["relative_errors"].values()) == {0.0}
    session = onnxruntime.InferenceSession(str(tmp_path / "a" / facts["file"]), providers=["CPUExecutionProvider"])
    for value, expected in zip(session.run(None, inputs), run(lowered, inputs, "all").values(), strict=True):
        # The layouts that x86 processors alone have are left out of the file, so sums come in another order.
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    needed = (tmp_path / "a" / facts["required_operators"]).read_text()
    assert "com.microsoft" in needed and "{" in needed  # types are listed beside operators


def test_the_runtime_style_keeps_what_core_ml_takes(tmp_path, tiny_vit):
    target = IosCoreMl()
    lowered = target.lower(tiny_vit, context(None, None, target.dialect))
    assert not any(each.domain for each in lowered.graph)
    facts = shipped(target, lowered, tmp_path / "a")
    assert facts["ort_format"]["style"] == "Runtime"
    assert (tmp_path / "a" / "model.with_runtime_opt.ort").is_file()
    assert max(facts["ort_format"]["relative_errors"].values()) <= ort_format.LARGEST_ERROR
    assert [each["provider"] for each in facts["providers"]] == PROVIDERS


def test_outputs_that_differ_are_refused(tmp_path, tiny_cnn, monkeypatch):
    AndroidCpu().build(tiny_cnn, tmp_path)
    monkeypatch.setattr(ort_format, "LARGEST_ERROR", -1.0)
    with pytest.raises(TargetError, match=r"'logits' of model\.ort differs"):
        ort_format.add_ort_format(tmp_path, tiny_cnn.ir, "Fixed")


def test_a_graph_that_the_converter_does_not_take_is_refused_in_one_line(tmp_path, tiny_cnn):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(TargetError, match="converter") as caught:
        ort_format.add_ort_format(tmp_path, tiny_cnn.ir, "Fixed")
    assert "\n" not in caught.value.what


def test_a_graph_too_large_to_run_is_converted_and_not_compared(tmp_path, tiny_cnn, monkeypatch):
    AndroidCpu().build(tiny_cnn, tmp_path)
    monkeypatch.setattr(ort_format, "obstacle_to_running", lambda model: "too large")
    assert "relative_errors" not in ort_format.add_ort_format(tmp_path, tiny_cnn.ir, "Fixed")


@pytest.mark.parametrize(
    ("expected", "actual", "error"),
    [
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([0.0], [0.0], 0.0),
        ([1, 2], [1, 2], 0.0),
    ],
)
def test_distance_of_outputs(expected, actual, error):
    assert convert.distance(np.array(expected), np.array(actual)) == pytest.approx(error)


def test_placement_counts_what_a_provider_lists(tiny_vit):
    open_shapes = find_placement(tiny_vit.ir, "Core ML program")
    assert open_shapes.open_shapes > 0
    fixed = fix_dimensions(tiny_vit, {"batch": 1})
    placement = find_placement(fixed.ir, "Core ML program")
    assert placement.nodes == len(list(fixed.graph))
    assert placement.open_shapes == 0
    outside = sum(len(names) for names in placement.unsupported.values())
    assert placement.supported == placement.nodes - outside - placement.high_rank
    assert "Gather" in placement.unsupported
    nnapi = find_placement(fixed.ir, "NNAPI")
    assert {"Gelu", "LayerNormalization"} <= set(nnapi.unsupported)
    assert (nnapi.advice, placement.advice) == ("no", "maybe")
    assert (nnapi.partitions > 2, placement.partitions) == (True, 2)


def test_placement_reads_no_weight_and_changes_nothing(tiny_vit):
    digest = tiny_vit.digest()
    for provider in PROVIDERS:
        find_placement(tiny_vit.ir, provider)
    assert tiny_vit.digest() == digest


def test_a_graph_that_core_ml_takes_as_a_whole_has_no_findings():
    model = graph([node("Relu", ["x"], "h"), node("Sigmoid", ["h"], "y")], {}, {"x": [1, 4]})
    registry = load_registry()
    record, target = find_target(registry, "ios-coreml")
    assert find_placement(model.ir, "Core ML program").advice == "yes"
    assert not [each for each in run_lints(registry, record, model, target.dialect) if "core" in each.lint]


def test_core_ml_gets_no_codes():
    from edgesmith_quantization.options.int8 import QuantizeInt8Options
    from edgesmith_quantization.quantize_int8 import QuantizeInt8

    dialect = IosCoreMl().dialect
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": np.ones((4, 4), np.float32)}, {"x": [1, 4]})
    data = {"x": np.ones((2, 4), np.float32)}
    verdict = QuantizeInt8().check(model, context(QuantizeInt8Options(), data, dialect))
    assert verdict.status == "refuse"
    assert "--recipe float" in verdict.reason


STRANGE = 'a"b$c\\d'


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_cnn"])
def test_snippets_name_the_real_inputs(fixture, request, tmp_path):
    model = request.getfixturevalue(fixture)
    written = write_snippets(tmp_path, model.graph, "model.ort", {"key": "1"}, core_ml=False)
    assert written == (KOTLIN_FILE, SWIFT_FILE)
    kotlin, swift = ((tmp_path / name).read_text() for name in (KOTLIN_FILE, SWIFT_FILE))
    for value in model.graph.inputs:
        kind = {"INT64": ("INT64", ".int64"), "FLOAT": ("FLOAT", ".float")}[value.dtype.name]
        assert f'"{value.name}" to' in kotlin and f"OnnxJavaType.{kind[0]}" in kotlin
        assert f'"{value.name}": try ORTValue' in swift and kind[1] in swift
    assert 'addConfigEntry("key", "1")' in kotlin and 'withKey: "key", value: "1"' in swift
    for value in model.graph.outputs:
        assert f'"{value.name}"' in swift
    for text in (kotlin, swift):
        assert all(text.count(left) == text.count(right) for left, right in ("()", "{}"))


def test_fixed_shapes_become_defaults(tmp_path, tiny_cnn):
    fixed = fix_dimensions(tiny_cnn, {"batch": 1})
    write_snippets(tmp_path, fixed.graph, "model.ort", {}, core_ml=False)
    assert "imageShape: LongArray = longArrayOf(1, 3, 16, 16)" in (tmp_path / KOTLIN_FILE).read_text()
    (tmp_path / KOTLIN_FILE).unlink()
    assert write_snippets(tmp_path, fixed.graph, "model.ort", {}, core_ml=True) == (SWIFT_FILE,)
    assert not (tmp_path / KOTLIN_FILE).exists()  # there is no Core ML on Android
    swift = (tmp_path / SWIFT_FILE).read_text()
    assert "imageShape: [NSNumber] = [1, 3, 16, 16]" in swift
    assert '"RequireStaticInputShapes": "1"' in swift


def test_names_from_a_file_cannot_leave_their_string_or_comment(tmp_path):
    model = graph([node("Relu", [STRANGE], "y")], {}, {STRANGE: [1, 4]})
    assert write_snippets(tmp_path, model.graph, "model.ort", {}, core_ml=False)
    assert r'"a\"b\$c\\d" to' in (tmp_path / KOTLIN_FILE).read_text()
    assert r'"a\"b$c\\d": try' in (tmp_path / SWIFT_FILE).read_text()
    evil = graph([node("Relu", ["x */ evil"], "y")], {}, {"x */ evil": [1]})
    write_snippets(tmp_path, evil.graph, "model.ort", {}, core_ml=False)
    comment = (tmp_path / KOTLIN_FILE).read_text().partition("/**")[2]
    assert "evil" in comment.partition("*/")[0]


def test_parameters_are_valid_and_different_names(tmp_path):
    names = ["1st", "in", "a b", "a_b", "::"]
    nodes = [node("Sum", names, "y")]
    write_snippets(tmp_path, graph(nodes, {}, {name: [2] for name in names}).graph, "m.ort", {}, core_ml=False)
    text = (tmp_path / KOTLIN_FILE).read_text()
    for identifier in ("input1st", "inputIn", "aB", "aB2", "input"):
        assert f"{identifier}: ByteBuffer" in text


@pytest.mark.parametrize("kind", ["float16", "unprintable"])
def test_what_the_languages_cannot_say_gives_no_snippet(kind, tmp_path):
    name = "x\n" if kind == "unprintable" else "x"
    types = {name: TensorProto.FLOAT16, "y": TensorProto.FLOAT16} if kind == "float16" else None
    model = graph([node("Relu", [name], "y")], {}, {name: [1]}, types=types)
    assert not write_snippets(tmp_path, model.graph, "model.ort", {}, core_ml=False)
    assert not (tmp_path / KOTLIN_FILE).exists()


def test_the_report_says_what_ships(tmp_path, tiny_cnn):
    facts = shipped(AndroidCpu(), tiny_cnn, tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"build": facts}))
    (section,) = phone_sections(tmp_path)
    for words in ("model.ort", "have the bits of model.onnx", "NNAPI", "Core ML program", "Model.kt"):
        assert words in section.html
    (tmp_path / "manifest.json").write_text(json.dumps({"build": {}}))
    assert phone_sections(tmp_path) == []


def test_the_android_graph_is_the_one_for_processors(tiny_bert):
    target = AndroidCpu()
    inputs = sample_inputs(tiny_bert.ir)
    lowered = target.lower(tiny_bert, context(None, inputs, target.dialect))
    assert operators(lowered)["MultiHeadAttention"] == 2
    expected, actual = run(tiny_bert, inputs), run(lowered, inputs, "all")
    for name, reference in expected.items():
        np.testing.assert_allclose(actual[name], reference, rtol=1e-4, atol=1e-5)
    assert target.dialect.weight_format("float8e4m3fn") is None
    assert "int8" in target.dialect.refusals["float8"]


def test_standard_lowering_proves_itself_too(monkeypatch, tiny_vit):
    from edgesmith_onnxruntime import lowering

    def spoil(editable):
        next(each for each in editable if each.op_type == "LayerNormalization").attributes["epsilon"] = ir.AttrFloat32(
            "epsilon", 1.0
        )
        return 1

    monkeypatch.setattr(lowering, "write_whole_selections", spoil)
    used = context()
    IosCoreMl().lower(tiny_vit, used)
    assert any(remark.startswith("Left out, because outputs changed") for remark in used.notes.remarks)
