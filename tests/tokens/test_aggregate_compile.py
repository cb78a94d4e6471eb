"""One recipe that prunes, aggregates tokens and quantizes, for ONNX Runtime and for TensorRT."""

import importlib.util
import json

import numpy as np
import onnx_ir as ir
import pytest
from tests.pipeline.test_robustness import QUICK
from tests.tokens.aggregate_networks import images, vision

import edgesmith
from edgesmith_tensorrt.gate import COMPILERS

STEPS = (
    {"method": "prune-structure", "options": {"ratio": 0.25, "score": "magnitude", "refit": "none"}},
    {"method": "aggregate-tokens"},
    {"method": "quantize-int8", "options": {"mode": "static"}},
)
RUNTIMES = [
    "onnx-cpu",
    pytest.param(
        "rtx-40",
        marks=pytest.mark.skipif(
            not any(importlib.util.find_spec(name) for name in COMPILERS),
            reason="TensorRT for RTX is not installed: pip install 'edgesmith[tensorrt-rtx]'",
        ),
    ),
]


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_recipe_prunes_aggregates_and_quantizes(target, tmp_path):
    model = vision(blocks=2)
    ir.save(model.ir, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **images(model, 12))
    artifact = edgesmith.compile(
        tmp_path / "model.onnx",
        out=tmp_path / "artifact",
        target=target,
        recipe={"steps": STEPS},
        data=tmp_path / "data.npz",
        settings=edgesmith.Settings(threads=1, store=tmp_path / "store", latency_plan=QUICK),
    )
    rows = {row.stage: row for row in artifact.ledger.rows}
    macs = [rows[stage].macs for stage in ("source", "prune-structure", "aggregate-tokens")]
    assert macs[0] > macs[1] > macs[2]
    assert "Tokens x blocks (attention-guided): 17 x 1, 9 x 1." in rows["aggregate-tokens"].remarks
    deployed = ir.load(artifact.entry)
    assert any(node.op_type in ("QuantizeLinear", "QLinearMatMul", "QGemm") for node in deployed.graph)
    if target == "rtx-40":
        facts = json.loads((tmp_path / "artifact" / "manifest.json").read_text())["build"]["engine"]
        assert facts["compute_capability"] == "8.9"
