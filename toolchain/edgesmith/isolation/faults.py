"""Errors on their way between processes: the four parts of one of the family, or type and text of any other."""

from collections.abc import Mapping
from typing import Any

from edgesmith import errors
from edgesmith.errors import EdgesmithError


class RunError(Exception):
    """What the run failed with, not being of the family, while it answered a step."""


def to_json(error: BaseException) -> dict[str, str]:
    """Return an error as JSON data."""
    if isinstance(error, EdgesmithError):
        known = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in errors.__all__)
        return {
            "kind": known,
            "what": error.what,
            "expected": error.expected,
            "why": error.why,
            "fix": error.fix,
        }
    return {"kind": "", "what": f"{type(error).__name__}: {error}"}


def from_json(parts: Mapping[str, Any]) -> Exception:
    """Return the error that `to_json` described."""
    if parts["kind"] not in errors.__all__:
        return RunError(parts["what"])
    kind: type[EdgesmithError] = getattr(errors, parts["kind"])
    return kind(parts["what"], expected=parts["expected"], why=parts["why"], fix=parts["fix"])
