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
            broken = {"before": other < declaring, "after": other > declaring, "excludes": True}
            found += [
                Violation(declaring, other, constraint, word)
                for constraint, words in _constraints(record)
                if broken[constraint]
                for word in words
                if _role(candidate, word)
            ]
    return tuple(found)


def find_order(records: Sequence[MethodRecord]) -> tuple[int, ...] | None:
    """Return the steps, by index, in the order nearest to theirs that satisfies every before and after, if any does."""
    left, placed = list(range(len(records))), list[int]()
    while left:
        ready = [one for one in left if not any(_must_follow(records, one, other) for other in left if other != one)]
        if not ready:
            return None
        placed.append(ready[0])
        left.remove(ready[0])
    return tuple(placed)


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
        fix=_advice(violations, records),
    )


def declared_by_others(record: MethodRecord, registry: "Registry") -> tuple[str, ...]:
    """Return in sentences what other installed methods declare about this one, with who declares it."""
    return tuple(
        f"{rule} {other.name}, which {registry.distribution_of(other)} declares with {constraint}={word}"
        for other in registry.methods()
        if other is not record
        for constraint, words in _constraints(other)
        for word in words
        if _role(record, word)
        for rule in (_SEEN_FROM_THE_OTHER[constraint],)
    )


_SEEN_FROM_THE_OTHER = {
    "before": "must stand after",
    "after": "must stand before",
    "excludes": "is excluded by",
}


def _constraints(record: MethodRecord) -> tuple[tuple[str, tuple[str, ...]], ...]:
    order = record.order
    return (("before", order.before), ("after", order.after), ("excludes", order.excludes))


def _role(record: MethodRecord, word: str) -> str:
    """Return what a word of a constraint is to a method: its name, its kind or a tag of it; empty where nothing."""
    if word == record.name:
        return "name"
    if word == record.kind:
        return "kind"
    return "tag" if word in record.tags else ""


def _must_follow(records: Sequence[MethodRecord], one: int, other: int) -> bool:
    """Return whether step `one` may only stand after step `other`."""
    first, second = records[one], records[other]
    return any(_role(second, word) for word in first.order.after) or any(
        _role(first, word) for word in second.order.before
    )


def _declaration(record: MethodRecord, constraint: str, word: str) -> str:
    return f"`{record.name}` declares {constraint}={word}"


def _explain(violation: Violation, records: Sequence[MethodRecord], registry: "Registry") -> str:
    declaring, other = records[violation.declaring], records[violation.other]
    relation = "together with" if violation.constraint == "excludes" else "after"
    pair = (violation.declaring, violation.other)
    one, two = pair if violation.constraint != "after" else reversed(pair)
    role = _role(other, violation.word)
    return (
        f"{records[one].name} {relation} {records[two].name} (step {one + 1} and step {two + 1}): "
        f"{_declaration(declaring, violation.constraint, violation.word)}, "
        f"from {registry.distribution_of(declaring)} ({violation.word} is the {role} of `{other.name}`, from "
        f"{registry.distribution_of(other)})"
    )


def _advice(violations: Sequence[Violation], records: Sequence[MethodRecord]) -> str:
    excluding = [violation for violation in violations if violation.constraint == "excludes"]
    first = (excluding or violations)[0]
    declaring, other = records[first.declaring].name, records[first.other].name
    if excluding:
        return f"Remove `{declaring}` or `{other}`."
    order = find_order(records)
    if order is None:
        involved = dict.fromkeys(
            records[step].name for violation in violations for step in (violation.declaring, violation.other)
        )
        return f"No order satisfies all of them. Remove one of {', '.join(f'`{name}`' for name in involved)}."
    if len(violations) == 1:
        return f"Move `{declaring}` {first.constraint} `{other}`."
    return f"Order the steps so: {', '.join(records[step].name for step in order)}."
