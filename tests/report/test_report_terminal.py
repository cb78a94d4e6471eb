"""The ledger in a terminal: 80 columns, no colour."""

import io
import json
from pathlib import Path

import pytest
import report_ledgers
from rich.console import Console

from edgesmith.files import hash_file
from edgesmith.host.records import Tier
from edgesmith.measure.compare import compare_artifacts
from edgesmith.measure.runner import busy_remarks
from edgesmith.report.terminal import comparison_table, ledger_table


def printed(what: object, width: int = 80, *, color: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=color, no_color=not color).print(what)
    return stream.getvalue()


def test_eighty_columns_hold_every_figure_whole():
    text = printed(ledger_table(report_ledgers.full_ledger()))
    assert max(map(len, text.splitlines())) <= 80
    for figure in ("97.08", "8.31", "[8.06..8.61]", "2.58×", "23.2 MB", "117 MB", "27.8", "131.2"):
        assert figure in text, figure
    assert "…" not in text and "\x1b" not in text
    (chosen,) = [line for line in text.splitlines() if line.startswith("> onnx-cpu")]
    assert chosen.split()[-1] == "R"
    assert "R reference" in text and "(undone)" in text
    assert "Undone: static quantization" in text and "the budget is met" in " ".join(text.split())


def test_quartiles_of_small_times_are_whole_and_every_letter_of_the_tier_is_there():
    ledger = report_ledgers.full_ledger()
    small = ledger.rows[4].latency_ms.model_copy(update={"value": 0.0142, "low": 0.0139, "high": 0.0147})
    rows = [row.model_copy(update={"latency_ms": small}) for row in ledger.rows]
    text = printed(ledger_table(ledger.model_copy(update={"rows": tuple(rows)})))
    assert text.count("[0.0139..0.0147]") == 5 and max(map(len, text.splitlines())) <= 80
    assert any(line.endswith("tier") for line in text.splitlines())


def test_a_timed_device_is_named_with_what_is_to_be_known_of_its_times():
    ledger = report_ledgers.full_ledger(device={"address": "ssh://me@board"})
    timed = ledger.rows[0].latency_ms.model_copy(update={"tier": Tier.DEVICE})
    told = ("Times are from ssh://me@board: a board.", "The machine was busy.")
    row = ledger.rows[0].model_copy(update={"latency_ms": timed, "remarks": told})
    ledger = ledger.model_copy(update={"rows": (row, *ledger.rows[1:])})
    text = printed(ledger_table(ledger), 120)
    assert all(remark in text for remark in told) and "D device (latency)" in text
    assert told[0] not in printed(ledger_table(ledger.model_copy(update={"device": {}})), 120)


def test_that_the_machine_was_busy_is_said_of_local_times_too():
    ledger = report_ledgers.full_ledger()
    row = ledger.rows[0].model_copy(update={"remarks": ("Read from a file.", *busy_remarks(0.84))})
    text = " ".join(printed(ledger_table(ledger.model_copy(update={"rows": (row, *ledger.rows[1:])}))).split())
    assert "The machine was busy: the timed thread waited for a processor 84% of the time." in text
    assert "Read from a file." not in text


def test_a_table_without_times_does_not_explain_them():
    ledger = report_ledgers.full_ledger()
    assert "> chosen, latency as median [quartiles], tier: " in " ".join(printed(ledger_table(ledger)).split())
    untimed = tuple(row.model_copy(update={"latency_ms": None}) for row in ledger.rows)
    told = printed(ledger_table(ledger.model_copy(update={"rows": untimed})))
    assert "> chosen, tier: " in told
    assert "quartiles" not in told


def test_the_distance_from_the_source_stands_there_once():
    ledger = report_ledgers.full_ledger()
    assert "SQNR" in printed(ledger_table(ledger))
    metric = ledger.rows[4].metric.model_copy(update={"value": 27.5, "unit": "dB"})
    rows = tuple(row.model_copy(update={"metric": metric}) for row in ledger.rows)
    text = printed(ledger_table(ledger.model_copy(update={"metric": "sqnr", "rows": rows})))
    assert "SQNR" not in text and "27.8" not in text and "27.5" in text


def test_wide_terminals_give_one_line_per_stage():
    lines = printed(ledger_table(report_ledgers.full_ledger()), 120).splitlines()
    assert sum("[" in line and ".." in line for line in lines) == 5
    assert any("quantize-int8 dynamic (undone)" in line and "[10.6..11.3]" in line for line in lines)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("make", [report_ledgers.minimal_ledger, report_ledgers.crowded_ledger])
def test_missing_numbers_and_long_names_keep_the_width(make, width: int):
    text = printed(ledger_table(make()), width)
    assert max(map(len, text.splitlines())) <= width
    assert "–" in text


def test_each_rule_says_once_what_it_found_in_the_artifact():
    ledger = report_ledgers.minimal_ledger()
    remarks = ("Joined scale and bias.", "dla-placement: 0 parts on the DLA.", "dla-placement: 2 nodes run on the GPU.")
    rows = [row.model_copy(update={"remarks": remarks}) for row in ledger.rows]
    text = printed(ledger_table(ledger.model_copy(update={"rows": tuple(rows)})), 200)
    assert text.count("dla-placement: 0 parts on the DLA.") == 1
    assert "2 nodes" not in text and "Joined" not in text


def test_names_are_not_markup():
    ledger = report_ledgers.minimal_ledger()
    row = ledger.rows[0].model_copy(update={"stage": "[bold]x[/]", "reason": "[red]why[/]", "status": "undone"})
    text = printed(ledger_table(ledger.model_copy(update={"rows": (row,), "verdict": "[link=x]v[/]"})))
    assert "[bold]x[/]" in text and "[red]why[/]" in text and "[link=x]v[/]" in text


def test_colour_adds_no_information():
    ledger = report_ledgers.full_ledger()
    assert "\x1b" in printed(ledger_table(ledger), color=True)
    assert ">" in printed(ledger_table(ledger)) and "undone" in printed(ledger_table(ledger))


def test_comparison_gives_changes_or_the_reason(tmp_path: Path):
    first = report_ledgers.write(tmp_path / "a", report_ledgers.full_ledger(), bare=True)
    ledger = report_ledgers.full_ledger()
    row = ledger.rows[4]
    latency = row.latency_ms.model_copy(update={"conditions": {**row.latency_ms.conditions, "threads": 8}})
    changed = ledger.model_copy(update={"rows": (*ledger.rows[:4], row.model_copy(update={"latency_ms": latency}))})
    second = report_ledgers.write(tmp_path / "b", changed, bare=True)
    text = " ".join(printed(comparison_table(compare_artifacts(first, second)), 200).split())
    assert "accuracy 97.08 % 97.08 % ±0.00 points" in text
    assert "latency 8.31 ms 8.31 ms –" in text
    assert "latency: not compared, measured under different conditions: threads 1 and 8" in text
    assert "size 23.2 MB 23.2 MB 1.00×" in text


def test_figures_of_a_damaged_artifact_are_said_to_be_of_another(tmp_path: Path):
    first, second = (report_ledgers.write(tmp_path / name, report_ledgers.full_ledger(), bare=True) for name in "ab")
    facts = {"sha256": hash_file(first / "ledger.json")}
    (first / "manifest.json").write_text(json.dumps({"files": {"ledger.json": facts}}))
    assert compare_artifacts(first, second).warnings == ()
    (first / "manifest.json").write_text(json.dumps({"files": {"ledger.json": facts, "model.onnx": facts}}))
    text = " ".join(printed(comparison_table(compare_artifacts(first, second)), 200).split())
    assert f"Damaged: model.onnx of {first} is missing" in text
    (second / "manifest.json").write_text("{")
    assert len(compare_artifacts(first, second).warnings) == 2
