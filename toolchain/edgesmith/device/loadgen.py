"""Reads the summary that MLPerf's load generator writes."""

import re
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

_LINE = re.compile(r"^\s*(?P<name>[^:\n]+?)\s*:\s*(?P<value>.+?)\s*$", re.MULTILINE)
_SECTION = "Test Parameters Used"
_NUMBERS = (
    "90th percentile latency (ns)",
    "90.0th percentile latency (ns)",
    "99th percentile latency (ns)",
    "99.0th percentile latency (ns)",
    "99.00 percentile latency (ns)",
    "Samples per second",
    "Completed samples per second",
    "QPS w/ loadgen overhead",
    "Mean latency (ns)",
)


class LoadGenResult(BaseModel):
    """What one scenario gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: str
    is_valid: bool
    """Whether the run was long enough and otherwise by the rules; an invalid one is no MLPerf result."""
    figures: Mapping[str, float]
    """The summary's own names to its numbers."""


def read_summary(text: str) -> LoadGenResult | None:
    """Return what a summary says; None where it is none."""
    results = text.partition(_SECTION)[0]
    found = {match["name"]: match["value"] for match in _LINE.finditer(results)}
    if "Scenario" not in found or "Result is" not in found:
        return None
    figures = {name: _number(found[name]) for name in _NUMBERS if name in found}
    figures |= {name: _number(value) for name, value in found.items() if "percentile latency (ns)" in name}
    return LoadGenResult(
        scenario=found["Scenario"].replace(" ", ""),
        is_valid=found["Result is"] == "VALID",
        figures={name: number for name, number in figures.items() if number is not None},
    )


def _number(text: str) -> float | None:
    try:
        return float(text.partition(" ")[0])
    except ValueError:
        return None
