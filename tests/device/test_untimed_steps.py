"""`keep: if-pays` for a device that is not here: a step is kept for its size, and the ledger says it was not timed."""

from types import SimpleNamespace

import pytest
from measure_models import dense_model

import edgesmith
from edgesmith.errors import TargetError
from edgesmith.ledger import LedgerRow
from edgesmith.pipeline import _Entry, _timed
from edgesmith.stage import Stage

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


@pytest.mark.parametrize(("refused", "untimed"), [("step", [False, True, False]), ("source", [True, True, True])])
def test_why_a_stage_that_cannot_be_lowered_has_no_times_is_known_of_its_row(tmp_path, refused, untimed):
    model = edgesmith.Model.load(dense_model(tmp_path / "dense.onnx"))
    stages = [Stage(label, model, tmp_path / "dense.onnx", label) for label in ("source", "step", "lowered")]
    entries = [
        _Entry(LedgerRow(index=index, stage=stage.label), stage, stages[index - 1] if index else None)
        for index, stage in enumerate(stages)
    ]

    def timed_form(stage):
        if stage.label == refused:
            raise TargetError("made up", expected="", why="", fix="")
        return stage

    meter = SimpleNamespace(time=lambda stages: [row for row, _, _ in stages])
    rows = _timed(meter, entries, timed_form)
    assert [bool(row.untimed) for row in rows] == untimed
    assert [row.stage for row in rows if row.untimed == "it cannot be lowered by itself: made up"] == [refused]
    assert any("Not timed: it cannot be lowered" in note for row in rows for note in row.notes)
