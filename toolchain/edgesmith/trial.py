"""The service behind `Context.trial`: lowers a model for the run's target and times it on the run's clock."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.data import first_batch
from edgesmith.errors import MeasurementError
from edgesmith.host.building import build_files, require_accepted
from edgesmith.host.context import Context, Notes
from edgesmith.host.step import run_lowering
from edgesmith.ledger import Measurement
from edgesmith.measure.runner import Clock, LatencyPlan
from edgesmith.model import Model
from edgesmith.plan import Plan
from edgesmith_calibration.sources import Batch

if TYPE_CHECKING:
    import numpy as np

    from edgesmith_calibration.sources import DataSource

_BASELINE = "baseline"
_TOO_SLOW = 1e-3
"""Speed-up of an alternative that does not run where it is timed: never enough, and still a divisor."""


@dataclass(frozen=True, slots=True)
class RunnerTrial:
    """Tries models as the run would ship them. Keeps nothing in the store."""

    plan: Plan
    clock: Clock
    inputs: "Mapping[str, np.ndarray]"
    """The batch that the run measures latency on."""
    calibration: "DataSource | None"
    """Where there is any, models are timed on a batch of it of equal size, since a method selects by these times."""
    latency_plan: LatencyPlan
    context: Context[None]
    """What lowering may use: the data that proves it, seed, threads."""

    @property
    def measures_latency(self) -> bool:
        """Whether `speedups` works in this run. Who asks has a result that depends on the answer."""
        self.context.notes.depends_on_times = True
        return self.clock.measures_cost

    def lower(self, model: Model) -> Model:
        """Return `model` lowered; see `edgesmith.host.trial.Trial`."""
        context = replace(self.context, notes=Notes())
        lowered = run_lowering(self.plan.target_record, self.plan.target, model, context).model
        require_accepted(self.plan.target_record, self.plan.target, lowered)
        return lowered

    def speedups(
        self, models: Sequence[Model], baseline: Model, *, max_seconds: float = 30.0
    ) -> tuple[Measurement, ...]:
        """Return speed-ups of all `models`, timed in turns; see `edgesmith.host.trial.Trial`."""
        if not models:
            return ()
        self.context.notes.depends_on_times = True
        labels = [str(index) for index in range(len(models))]
        plan = replace(self.latency_plan, max_seconds=max_seconds)
        with tempfile.TemporaryDirectory(prefix="edgesmith-trial-", dir=self.context.scratch) as folder:
            entries = {_BASELINE: self._build(baseline, Path(folder) / _BASELINE)}
            for label, model in zip(labels, models, strict=True):
                entries[label] = self._build(model, Path(folder) / label)
            with self.context.progress.stage(f"timing {len(entries)} alternatives in turns"):
                comparison = self.clock.latency(entries, self._inputs(), plan)
        if _BASELINE in comparison.failures:
            raise _no_baseline(comparison.failures[_BASELINE])
        failures = [f"An alternative is never chosen: {why}" for why in comparison.failures.values()]
        told = self.context.notes.remarks
        told += [remark for remark in (*comparison.remarks, *failures) if remark not in told]
        too_slow = Measurement(value=_TOO_SLOW, unit="x", tier=comparison.tier, low=_TOO_SLOW, high=_TOO_SLOW)
        return tuple(
            too_slow if label in comparison.failures else comparison.speedup(label, _BASELINE) for label in labels
        )

    def _inputs(self) -> "Mapping[str, np.ndarray]":
        if self.calibration is None:
            return self.inputs
        return first_batch(self.calibration, Batch(self.inputs).size).inputs

    def _build(self, model: Model, folder: Path) -> Path:
        folder.mkdir()
        return folder / build_files(self.plan.target_record, self.plan.target, model, folder).entry


def _no_baseline(reason: str) -> MeasurementError:
    return MeasurementError(
        f"Alternatives cannot be timed, since the model before them does not run: {reason}",
        expected="a model before the step that runs where it is timed",
        why="How much faster an alternative is, is told against it.",
        fix="Let the step choose by another option than time, or leave it out.",
    )
