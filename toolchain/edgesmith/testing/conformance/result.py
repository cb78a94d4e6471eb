"""What a check of the conformance suite says."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "failed", "not-applicable"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The answer of one check."""

    status: Status
    what: str = ""
    """What was seen: the fault and where, or why there was nothing to check."""
    fix: str = ""
    """What the author of the plugin does about it."""

    def __str__(self) -> str:
        """Return it as one line."""
        return " ".join(part for part in (f"{self.status}:", self.what, self.fix) if part)


def ok(what: str = "") -> CheckResult:
    """The plugin does what is asked."""
    return CheckResult("ok", what)


def failed(what: str, fix: str) -> CheckResult:
    """The plugin does not, and this mends it."""
    return CheckResult("failed", what, fix)


def not_applicable(what: str) -> CheckResult:
    """There is nothing to check, and this is why."""
    return CheckResult("not-applicable", what)
