"""Engines on a real GPU: built, run and held against the simulation. These tests never ran in CI."""

import importlib.util
import json
import shutil

import pytest
from measure_models import dense_model

import edgesmith
from edgesmith.cli import main
from edgesmith_tensorrt.gate import local_capabilities

CARDS = {"8.6": "rtx-30", "8.9": "rtx-40", "12.0": "rtx-50"}
CARD = next((CARDS[capability] for capability in sorted(local_capabilities()) if capability in CARDS), "")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CARD, reason="needs an RTX card of the 30, 40 or 50 series"),
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="TensorRT for RTX is not installed: pip install tensorrt-rtx",
    ),
]


def test_the_engine_of_an_artifact_runs_and_agrees_with_the_simulation(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    settings = edgesmith.Settings(threads=1, store=tmp_path / "store")
    recipe = {"version": 1, "steps": []}
    source = dense_model(tmp_path / "dense.onnx", width=64)
    edgesmith.compile(source, out=tmp_path / "artifact", target=CARD, recipe=recipe, settings=settings)
    assert (tmp_path / "artifact" / "engine.plan").is_file()
    assert shutil.which("nvidia-smi")
    assert main(["validate", str(tmp_path / "artifact"), "--on", "local", "--json", "--set", "seconds=1"]) == 0
    run = json.loads(capsys.readouterr().out)
    # Float16 rounds to 2^-11 of a value, which is 66 dB; two layers and their sums may cost 20 dB of it.
    assert run["gaps"]["logits"]["sqnr_db"] > 46
    assert any("cached" in remark for remark in run["remarks"])  # the engine that was built ahead of time is used
    assert run["row"]["latency_ms"]["conditions"]["cuda_graph"] in ("used", "not used")
    assert run["engine"]["layers"]
