"""Sensitivity: what each group of layers costs in each format, measured with everything else in float."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgesmith.errors import EdgesmithError
from edgesmith.host.context import Context, Notes
from edgesmith.model import Model
from edgesmith.progress import Progress, SilentProgress
from edgesmith.serialization import weight_bytes
from edgesmith_quantization.search.attempts import FLOAT
from edgesmith_quantization.search.formats import compose
from edgesmith_quantization.search.layer_groups import LayerGroup, merge_groups
from edgesmith_quantization.search.output_probe import OutputProbe, Quality


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one group in one format does to the model."""

    quality: Quality
    stored_bytes: int
    """Size of all stored tensors of the model with this group in this format."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When work must stop."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Return the deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        """Seconds left; negative once it has passed."""
        return self.at - time.monotonic()


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes assignments of formats into copies of one float model."""

    model: Model
    takers: Mapping[str, frozenset[str]]
    """Format name to the nodes that it can rewrite."""
    context: Context[Any]
    """What the methods may use: ranges are taken from its calibration data."""

    def write(self, groups: Sequence[LayerGroup], picks: Sequence[str], *, refine: bool = False) -> Model:
        """Return the model with each group in its format.

        Args:
            groups: The groups.
            picks: Format name of each, or `FLOAT`.
            refine: Take the slow and better way where a format has one.

        Raises:
            EdgesmithError: A method refuses, or fails.
        """
        assignment: dict[str, list[str]] = {}
        for group, pick in zip(groups, picks, strict=True):
            if pick != FLOAT:
                assignment.setdefault(pick, []).extend(self.nodes(group, pick))
        # What is tried and dropped leaves no files behind; weights in them stay mapped for as long as they are used.
        with TemporaryDirectory(dir=self.context.scratch) as folder:
            own = replace(self.context, notes=Notes(), progress=SilentProgress(), scratch=Path(folder))
            return compose(self.model, assignment, own, refine=refine)

    def nodes(self, group: LayerGroup, pick: str) -> tuple[str, ...]:
        """Return the nodes of `group` that a format can rewrite."""
        return tuple(node for node in group.nodes if node in self.takers[pick])

    def with_samples(self, count: int) -> "Writer":
        """Return a writer that takes ranges from at most `count` samples: quicker, and good enough to compare."""
        data = self.context.calibration
        return self if data is None else replace(self, context=replace(self.context, calibration=data.take(count)))


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """All that was measured. Groups may be merged where the time did not allow to measure each alone."""

    groups: tuple[LayerGroup, ...]
    measured: tuple[Mapping[str, Sensitivity], ...]
    """For each group, format name to sensitivity. Formats that were not measured, or do not fit, are missing."""
    complete: bool
    """Whether there was time for every group in every format."""


def measure_sensitivities(
    groups: Sequence[LayerGroup],
    formats: Sequence[str],
    writer: Writer,
    probe: OutputProbe,
    deadline: Deadline,
    progress: Progress,
) -> Sensitivities:
    """Return the sensitivity of every group and format, measured one at a time in an otherwise float model.

    Groups with the most operations come first. When the first of them shows that the time will not do, groups of one
    kind are merged; groups that are still left when it is over are not measured.
    """
    started = time.monotonic()
    ordered = sorted(groups, key=lambda group: -group.macs)
    first = _measure(ordered[0], formats, writer, probe, deadline)
    seconds = max(time.monotonic() - started, 1e-6)
    affordable = 1 + int(max(deadline.left_s, 0.0) / seconds)
    merged = sorted(merge_groups(groups, affordable), key=lambda group: -group.macs)
    known = {ordered[0]: first}
    for group in progress.track(merged, "measuring sensitivities", len(merged)):
        if group not in known and deadline.left_s > 0:
            known[group] = _measure(group, formats, writer, probe, deadline)
    measured = tuple(known.get(group, {}) for group in merged)
    complete = deadline.left_s > 0 and all(group in known for group in merged)
    return Sensitivities(tuple(merged), measured, complete)


def _measure(
    group: LayerGroup, formats: Sequence[str], writer: Writer, probe: OutputProbe, deadline: Deadline
) -> Mapping[str, Sensitivity]:
    """Return what the time allows, and one format at least: with large models a single measurement takes minutes."""
    found: dict[str, Sensitivity] = {}
    for name in formats:
        if found and deadline.left_s <= 0:
            break
        if not writer.nodes(group, name):
            continue
        try:
            variant = writer.write([group], [name])
            found[name] = Sensitivity(probe.measure(variant.ir), weight_bytes(variant.ir))
        except EdgesmithError:
            # A group that a method refuses alone stays without this choice; others are not concerned.
            continue
    return found
