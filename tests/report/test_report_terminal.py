"""The ledger in a terminal: 80 columns, no colour."""

import io
from pathlib import Path

import pytest
import report_ledgers
from rich.console import Console

from edgesmith.measure.compare import compare_artifacts
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
