"""TorchGraph against the node tests that ship inside the onnx package. None may fail."""

from pathlib import Path

import pytest

from edgesmith.execution.conformance import EXCEPTIONS, Outcome, Result, render, run_all, table

DOCUMENT = Path(__file__).parents[2] / "docs" / "operators.md"


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return run_all()


def test_every_operator_passes_or_is_refused(results, subtests):
    assert len(results) > 1800
    for row in table(results):
        with subtests.test(operator=row.operator):
            failed = [(r.test, r.reason) for r in results if r.operator == row.operator and r.outcome is Outcome.FAILED]
            assert not failed


def test_refusals_are_few_and_name_the_operator(results):
    refused = [result for result in results if result.outcome is Outcome.REFUSED]
    assert len(refused) / len(results) < 0.05
    for result in refused:
        assert "strings" in result.reason or "operator " in result.reason or "STRING" in result.reason, result


def test_exceptions_to_the_tolerance_are_needed_by_existing_tests(results):
    assert set(EXCEPTIONS) <= {result.test for result in results}
    assert len(EXCEPTIONS) <= 5


def test_the_page_lists_the_operators_of_today(results):
    def operators(text: str) -> list[str]:
        return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]

    fresh = operators(render(results))
    assert operators(DOCUMENT.read_text(encoding="utf-8")) == fresh, "run `python -m edgesmith.execution.conformance`"
    assert len(fresh) > 150
