"""Measured assignments of formats to groups, and which of them is best under a budget. Pure functions of numbers."""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgesmith_quantization.search.layer_groups import LayerGroup
from edgesmith_quantization.search.output_probe import Quality

if TYPE_CHECKING:
    from edgesmith.ledger import Measurement
    from edgesmith.model import Model

Objective = Literal["latency", "size"]
FLOAT = "float"
"""Name of the choice to leave a group as it is."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One whole assignment, written and measured."""

    groups: tuple[LayerGroup, ...]
    picks: tuple[str, ...]
    """Format name of each group, or `FLOAT`."""
    model: "Model"
    lowered: "Model"
    """What would ship and was measured; `model` itself where nothing can be lowered."""
    quality: Quality
    bits_per_weight: float
    speedup: "Measurement | None" = None
    """Against the float model, lowered and timed in turns with it; None where it was not timed."""

    @property
    def quantized(self) -> frozenset[int]:
        """Positions of the groups that are not in float."""
        return frozenset(index for index, pick in enumerate(self.picks) if pick != FLOAT)

    @property
    def summary(self) -> str:
        """The measured numbers in words."""
        parts = [f"{self.quality.sqnr_db:.1f} dB"]
        if self.quality.metric_drop is not None:
            parts.append(f"metric {0.0 - self.quality.metric_drop:+.2f}")
        parts.append(f"{self.bits_per_weight:.2f} bits per weight")
        if self.speedup is not None:
            spread = f" ({self.speedup.low:.2f} to {self.speedup.high:.2f})" if self.speedup.low is not None else ""
            parts.append(f"{self.speedup.value:.2f} times the speed of float{spread}")
        return ", ".join(parts)

    def largest_kinds(self, most: int) -> tuple[str, ...]:
        """Return the kinds of layers that are not in float, those with the most operations first."""
        macs: dict[str, int] = {}
        for group, pick in zip(self.groups, self.picks, strict=True):
            if pick != FLOAT:
                macs[group.kind] = macs.get(group.kind, 0) + group.macs
        return tuple(sorted(macs, key=lambda kind: (-macs[kind], kind))[:most])

    def picks_without(self, kinds: Set[str]) -> tuple[str, ...]:
        """Return the picks with the groups of some kinds in float."""
        pairs = zip(self.groups, self.picks, strict=True)
        return tuple(FLOAT if group.kind in kinds else pick for group, pick in pairs)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an assignment must keep. None is no limit."""

    max_metric_drop: float | None = None
    min_sqnr_db: float | None = None
    max_bits_per_weight: float | None = None

    def misses(self, quality: Quality, bits_per_weight: float) -> tuple[str, ...]:
        """Return one sentence for each limit that is missed, with the distance to it. Empty means: within budget."""
        return tuple(text for text, over in self._excesses(quality, bits_per_weight) if over > 0)

    def shortfall(self, attempt: Attempt) -> float:
        """Return how far an attempt is from the limits, as a sum of relative distances; 0 is within budget."""
        return sum(max(0.0, over) for _, over in self._excesses(attempt.quality, attempt.bits_per_weight))

    def _excesses(self, quality: Quality, bits: float) -> list[tuple[str, float]]:
        found = []
        if self.max_metric_drop is not None:
            limit = self.max_metric_drop
            # Without a score, or with one that is no number, nothing shows that the limit holds.
            known = quality.metric_drop is not None and not math.isnan(quality.metric_drop)
            over = (quality.metric_drop or 0.0) - limit if known else float("inf")
            lost = f"{quality.metric_drop:.3g}" if known else "an unknown part"
            found.append((f"the metric loses {lost}, {over:.3g} more than {limit:g}", over / max(limit, 1.0)))
        if self.min_sqnr_db is not None:
            under = self.min_sqnr_db - quality.sqnr_db
            text = f"the outputs have {quality.sqnr_db:.1f} dB, {under:.1f} dB below {self.min_sqnr_db:g}"
            found.append((text, under / max(abs(self.min_sqnr_db), 1.0)))
        if self.max_bits_per_weight is not None:
            over = bits - self.max_bits_per_weight
            text = f"weights take {bits:.2f} bits each, {over:.2f} more than {self.max_bits_per_weight:g}"
            found.append((text, over / self.max_bits_per_weight))
        return found


def choose(attempts: Sequence[Attempt], limits: Limits, objective: Objective) -> Attempt:
    """Return the best attempt: within budget the cheapest, otherwise the one nearest to the budget.

    With a limit on bits, the cheapest is the most exact. Otherwise it is the fastest or the smallest; among attempts
    that are as fast as the fastest, as far as the quartiles tell, the smallest, and then the most exact.
    """
    nearest = min(limits.shortfall(one) for one in attempts)
    rest = [one for one in attempts if limits.shortfall(one) == nearest]
    if limits.max_bits_per_weight is not None:
        return min(rest, key=lambda one: (one.quality.noise, one.bits_per_weight))
    if objective == "latency":
        rest = _fastest(rest)
    return min(rest, key=lambda one: (one.bits_per_weight, one.quality.noise))


def dominated(one: Attempt, other: Attempt, objective: Objective) -> bool:
    """Return whether `other` is not worse than `one` in output error and objective, and in one of them better.

    The objective counts as speed where that was measured, and as bits otherwise. Bits of whole models are compared only
    where both formats take the same groups: what a format leaves in float says nothing about the bits it takes.
    """
    pairs = [(other.quality.noise, one.quality.noise)]
    if objective == "latency" and one.speedup is not None and other.speedup is not None:
        pairs.append((-other.speedup.value, -one.speedup.value))
    elif one.quantized == other.quantized:
        pairs.append((other.bits_per_weight, one.bits_per_weight))
    else:
        return False
    return all(its <= own for its, own in pairs) and any(its < own for its, own in pairs)


def clearly_faster(speedup: "Measurement | None") -> bool:
    """Return whether even the lower quartile of a speed-up is above 1."""
    return speedup is not None and speedup.low is not None and speedup.low > 1


def clearly_slower(speedup: "Measurement | None") -> bool:
    """Return whether even the upper quartile of a speed-up is below 1."""
    return speedup is not None and speedup.high is not None and speedup.high < 1


def _fastest(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return the attempts whose speed cannot be told from that of the fastest; all where none was timed."""
    timed = [(one, one.speedup) for one in attempts if one.speedup is not None]
    if not timed:
        return list(attempts)
    fastest = max((speedup for _, speedup in timed), key=lambda speedup: speedup.value)
    least = fastest.value if fastest.low is None else fastest.low
    return [one for one, speedup in timed if speedup.value >= least]
