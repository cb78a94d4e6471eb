"""What is read from the description of an engine. The descriptions are made up after NVIDIA's documentation of them."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.cli import main
from edgesmith.errors import TargetError
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_tensorrt.engine_layers import read_engine
from small_graphs import graph, node

MADE_UP = Path(__file__).parent / "made_up"
LAYERS = (MADE_UP / "made_up_engine_layers.json").read_text()
TIMES = (MADE_UP / "made_up_engine_times.json").read_text()


def model():
    """Return the graph that the made-up engine is of: two quantized products around a Gelu."""
    weights = {
        "s": np.float32(0.1),
        "z": np.int8(0),
        "w0": np.ones((16, 16), np.int8),
        "w1": np.ones((16, 16), np.int8),
    }
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q0"), node("DequantizeLinear", ["q0", "s", "z"], "d0")]
    nodes += [node("DequantizeLinear", ["w0", "s", "z"], "wd0"), node("MatMul", ["d0", "wd0"], "m0")]
    nodes += [node("Gelu", ["m0"], "g"), node("QuantizeLinear", ["g", "s", "z"], "q1")]
    nodes += [node("DequantizeLinear", ["q1", "s", "z"], "d1"), node("DequantizeLinear", ["w1", "s", "z"], "wd1")]
    return graph([*nodes, node("MatMul", ["d1", "wd1"], "m1")], weights, {"x": [16, 16]}, ("m1",))


def findings(layers=LAYERS, times=TIMES):
    return {each.rule: each for each in read_engine(model(), layers, times).findings}


def test_layers_have_their_precision_nodes_and_time():
    report = read_engine(model(), LAYERS, TIMES)
    assert [layer.precision for layer in report.layers] == ["float16", "int8", "float16", "float32", "float16", ""]
    assert report.layers[1].nodes == ("node_wd0", "node_m0")
    assert report.layers[1].time_ms == 0.1
    assert report.layers[5].time_ms == 0.0  # it took no time that was noted
    assert report.total_ms == pytest.approx(0.2)
    assert [layer.name for layer in report.slowest(2)] == ["node_wd0 + node_m0", "__myl_Gelu_made_up"]
    assert report.by_precision()["int8"] == (1, 0.1)
    assert ("layers in int8", "1, 0.100 ms, 50% of the time") in list(report.lines())


def test_pairs_that_nothing_fused_are_named_with_their_cost():
    finding = findings()["engine-unfused-pairs"]
    assert finding.layers == ("node_q0",)
    assert "0.020 ms (10%)" in finding.hazard


def test_reformats_that_change_the_type_are_named_and_those_that_do_not_are_not():
    finding = findings()["engine-type-reformats"]
    assert finding.layers == ("Reformatting CopyNode for Input Tensor 0 to node_g",)
    same = LAYERS.replace("Row major linear FP32", "Channel major FP16 format where channel % 4 == 0")
    assert "engine-type-reformats" not in findings(same)


def test_a_product_that_is_quantized_in_the_graph_and_runs_in_float_is_named():
    finding = findings()["engine-float-products"]
    assert finding.layers == ("node_m1",)


def test_much_time_in_reformats_is_found_only_with_times():
    assert "25% of the time" in findings()["engine-reformats"].hazard
    assert "engine-reformats" not in findings(times="")
    assert read_engine(model(), LAYERS).total_ms is None


def test_without_metadata_names_are_taken_apart():
    content = json.loads(LAYERS)
    for layer in content["Layers"]:
        layer["Metadata"] = ""
    report = read_engine(model(), json.dumps(content), TIMES)
    assert report.layers[1].nodes == ("node_wd0", "node_m0")


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Half", "float16"),
        ("Float", "float32"),
        ("Row major linear BF16 format", "bfloat16"),
        ("FP8", "float8"),
        ("Row major FP8E4M3", "float8"),
        ("Int32", ""),
        ("N/A due to dynamic shapes", ""),
    ],
)
def test_words_for_formats_are_understood(form, precision):
    layers = json.dumps({"Layers": [{"Name": "a", "LayerType": "gemm", "Inputs": [{"Format/Datatype": form}]}]})
    (layer,) = read_engine(model(), layers).layers
    assert layer.precision == precision


def test_names_alone_are_refused_with_the_flag_that_gives_more():
    with pytest.raises(TargetError, match="names of its 2 layers") as caught:
        read_engine(model(), json.dumps({"Layers": ["a", "b"], "Bindings": []}))
    assert "--profilingVerbosity=detailed" in caught.value.fix


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"Layers": []}', '{"Layers": [1]}', '{"Layers": [{}]}', "[" * 100_000]
)
def test_what_is_no_description_is_refused(text):
    with pytest.raises(TargetError, match="layers"):
        read_engine(model(), text)


@pytest.mark.parametrize("time", ["-1", "NaN", "Infinity", "true", '"1"'])
def test_times_that_are_no_times_are_refused(time):
    with pytest.raises(TargetError, match="averageMs"):
        read_engine(model(), LAYERS, f'[{{"count": 1}}, {{"name": "node_q0", "averageMs": {time}}}]')


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists, max_leaves=10))
def test_any_json_is_read_or_refused(content):
    for text in (json.dumps(content), json.dumps({"Layers": content})):
        try:
            read_engine(model(), text, json.dumps(content))
        except TargetError:
            continue


def test_a_target_without_engines_says_so():
    _, target = find_target(load_registry(), "onnx-cpu")
    with pytest.raises(TargetError, match="describes no engines"):
        target.read_engine(model(), LAYERS)


def test_the_command_shows_precision_time_and_findings(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    ir.save(model().ir, tmp_path / "model.onnx")
    words = ["lint", str(tmp_path / "model.onnx"), "--target", "jetson-orin-nano"]
    words += ["--engine-layers", str(MADE_UP / "made_up_engine_layers.json")]
    words += ["--engine-times", str(MADE_UP / "made_up_engine_times.json")]
    assert main(words) == 2
    shown = capsys.readouterr().out
    assert "engine-unfused-pairs" in shown
    assert "layers in int8" in shown
    assert main([*words, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["engine"]["layers"][0]["name"] == "node_q0"


def test_a_missing_description_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    ir.save(model().ir, tmp_path / "model.onnx")
    words = ["lint", str(tmp_path / "model.onnx"), "--target", "h100", "--engine-layers", str(tmp_path / "none.json")]
    assert main(words) == 2
    assert "none.json cannot be read" in capsys.readouterr().err
