"""The answer of a check: never a bare bool, always a reason and the nodes it is about."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a method or target applies.

    `ok` applies; `skip` would change nothing; `refuse` must not be applied. Skip and refuse carry a reason that
    a user can act on.
    """

    status: Literal["ok", "skip", "refuse"]
    reason: str = ""
    nodes: tuple[str, ...] = ()

    @classmethod
    def ok(cls, reason: str = "", nodes: tuple[str, ...] = ()) -> "Verdict":
        """The method applies, to `nodes` if given."""
        return cls("ok", reason, nodes)

    @classmethod
    def skip(cls, reason: str, nodes: tuple[str, ...] = ()) -> "Verdict":
        """There is nothing to do, and nothing is wrong."""
        return cls("skip", reason, nodes)

    @classmethod
    def refuse(cls, reason: str, nodes: tuple[str, ...] = ()) -> "Verdict":
        """The method must not be applied to this model."""
        return cls("refuse", reason, nodes)
