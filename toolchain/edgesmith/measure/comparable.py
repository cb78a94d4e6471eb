"""Whether two numbers may be compared, and why not: what differs between the conditions they were taken under."""

from dataclasses import dataclass

from edgesmith.ledger import Measurement


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of two artifacts."""

    name: str
    before: Measurement | None
    after: Measurement | None
    refusal: str = ""
    """Why the two must not be compared; empty when they may."""
    note: str = ""
    """What to know when reading the comparison."""

    @property
    def ratio(self) -> float | None:
        """Second divided by first, or None when they must not be compared."""
        if self.refusal or self.before is None or self.after is None or self.before.value == 0:
            return None
        return self.after.value / self.before.value

    @property
    def difference(self) -> float | None:
        """Second minus first, or None when they must not be compared."""
        if self.refusal or self.before is None or self.after is None:
            return None
        return self.after.value - self.before.value


def conditions_differ(before: Measurement, after: Measurement) -> str:
    """Return in words what differs between the conditions of two numbers; empty when they are comparable."""
    parts = []
    if before.tier != after.tier:
        parts.append(f"tier {before.tier} and {after.tier}")
    for name in sorted({*before.conditions, *after.conditions} - {"baseline_bytes"}):
        first, second = before.conditions.get(name, "unknown"), after.conditions.get(name, "unknown")
        if first != second:
            parts.append(f"{name} {first} and {second}")
    return ", ".join(parts)
