"""`keep: if-pays` for a device that is not here: a step is kept for its size, and the ledger says it was not timed."""

import pytest
from measure_models import dense_model

import edgesmith

STEP = {"method": "quantize-weights", "options": {"bits": 8, "block_size": None}}


@pytest.mark.parametrize(("budget", "status"), [({}, "ok"), ({"min_speedup": 1.1}, "undone")])
def test_the_ledger_says_that_nobody_timed_a_step(tmp_path, budget, status):
    recipe = {"version": 1, "keep": "if-pays", "budget": budget, "steps": [STEP]}
    artifact = edgesmith.compile(
        dense_model(tmp_path / "dense.onnx", width=256),
        out=tmp_path / "artifact",
        target="jetson-orin-nano",
        recipe=recipe,
        settings=edgesmith.Settings(threads=1, store=tmp_path / "store"),
    )
    row = artifact.ledger.rows[1]
    assert row.status == status and row.latency_ms is None
    assert "was not measured" in row.reason
    assert "compile with `--on DEVICE`" in row.reason
    assert row.reason in artifact.report.read_text()
