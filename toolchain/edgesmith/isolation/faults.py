"""Errors on their way between processes: the four parts of one of the family, or type and text of any other."""

from collections.abc import Mapping
from typing import Any

from edgesmith import errors
from edgesmith.errors import Condition, EdgesmithError, StepError

_LONGEST_TEXT = 1 << 20
"""Of each part. All together fit into a message, whatever their characters are."""


class RunError(Exception):
    """What the run or the process of a step failed with, not being of the family."""


def to_json(error: BaseException) -> dict[str, str | None]:
    """Return an error as JSON data."""
    if isinstance(error, EdgesmithError):
        known = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in errors.__all__)
        return {
            "kind": known,
            "what": error.what[:_LONGEST_TEXT],
            "expected": error.expected[:_LONGEST_TEXT],
            "why": error.why[:_LONGEST_TEXT],
            "fix": error.fix[:_LONGEST_TEXT],
            "condition": error.condition if isinstance(error, StepError) else None,
        }
    if isinstance(error, RunError):
        return {"kind": "", "what": str(error)[:_LONGEST_TEXT]}
    return {"kind": "", "what": f"{type(error).__name__}: {error}"[:_LONGEST_TEXT]}


def from_json(parts: Mapping[str, Any]) -> Exception:
    """Return the error that `to_json` described."""
    if parts["kind"] not in errors.__all__:
        return RunError(parts["what"])
    kind: type[EdgesmithError] = getattr(errors, parts["kind"])
    error = kind(parts["what"], expected=parts["expected"], why=parts["why"], fix=parts["fix"])
    if isinstance(error, StepError) and parts["condition"] is not None:
        error.condition = Condition(parts["condition"])
    return error
