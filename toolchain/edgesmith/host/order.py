"""Order of steps across independently shipped methods: before, after and excludes, checked before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.errors import RecipeError
from edgesmith.host.records import MethodRecord

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry


@dataclass(frozen=True, slots=True)
class Violation:
    """Two steps that must not stand as they do."""

    declaring: int
    """Index of the step whose method declares the constraint."""
    other: int
    constraint: str
    """"before", "after" or "excludes"."""
    word: str
    """The method name, kind or tag that was declared."""


def find_violations(records: Sequence[MethodRecord]) -> tuple[Violation, ...]:
    """Return every broken order constraint among `records`, which stand in recipe order."""
    found = []
    for declaring, record in enumerate(records):
        for other, candidate in enumerate(records):
            if other == declaring:
                continue
            words = {candidate.name, str(candidate.kind), *candidate.tags}
            broken = (
                ("before", record.order.before, other < declaring),
                ("after", record.order.after, other > declaring),
                ("excludes", record.order.excludes, True),
            )
            found += [
                Violation(declaring, other, constraint, word)
                for constraint, declared, applies in broken
                if applies
                for word in declared
                if word in words
            ]
    return tuple(found)


def check_order(records: Sequence[MethodRecord], registry: "Registry") -> None:
    """Raise RecipeError if a method stands where its own or another method's record forbids it.

    Args:
        records: The methods in the order of the recipe.
        registry: Where they come from; the message names who declared what.
    """
    violations = find_violations(records)
    if not violations:
        return
    sentences = [_explain(violation, records, registry) for violation in violations]
    raise RecipeError(
        "; ".join(sentences),
        expected="an order of steps that satisfies every method's declaration",
        why="In this order one step would destroy or hide what the other one needs.",
        fix=_advice(violations[0], records),
    )


def _explain(violation: Violation, records: Sequence[MethodRecord], registry: "Registry") -> str:
    declaring, other = records[violation.declaring], records[violation.other]
    relation = "together with" if violation.constraint == "excludes" else "after"
    first, second = (declaring, other) if violation.constraint != "after" else (other, declaring)
    return (
        f"{first.name} {relation} {second.name} (step {violation.declaring + 1} and step {violation.other + 1}): "
        f"`{declaring.name}` declares {violation.constraint}={violation.word}, "
        f"from {registry.distribution_of(declaring)}"
    )


def _advice(violation: Violation, records: Sequence[MethodRecord]) -> str:
    declaring, other = records[violation.declaring].name, records[violation.other].name
    if violation.constraint == "excludes":
        return f"Remove `{declaring}` or `{other}`."
    return f"Move `{declaring}` {violation.constraint} `{other}`."
