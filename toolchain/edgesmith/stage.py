"""One stage of a run: a model, the files built from it, and the ledger row that measures it against the others."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel

from edgesmith.budget import TIMES_FROM
from edgesmith.errors import DataError
from edgesmith.execution.handover import obstacle_to_running
from edgesmith.host.records import MetricRecord
from edgesmith.ledger import LayerError, LedgerRow, Measurement, OutputError
from edgesmith.measure.accuracy import Evaluation, EvaluationPlan, evaluate, paired_difference
from edgesmith.measure.divergence import layer_errors, output_error
from edgesmith.measure.machine import library_versions, processor_name, usable_cores
from edgesmith.measure.runner import TOO_BUSY_SHARE, Clock, LatencyComparison, LatencyPlan, Runner
from edgesmith.measure.size import measure_size
from edgesmith.model import Model
from edgesmith.progress import Progress
from edgesmith.store import Store, make_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgesmith_calibration.metrics import Metric
    from edgesmith_calibration.sources import DataSource

RecordT = TypeVar("RecordT", bound=BaseModel)

_LAYER_SAMPLES = 16
_RIGHT = {"%": 100.0}
"""Score of a right answer in metrics that count right answers, by unit."""
_LAYER_BATCH = 4
_EVALUATION_BATCH = 16


@dataclass(frozen=True, slots=True)
class Stage:
    """A model of the run with the file that a runner opens."""

    label: str
    model: Model
    entry: Path
    digest: str
    """Hash of the built files, which every measurement of this stage is stored under."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What every stage of a run is measured with, so that their numbers are comparable."""

    runner: Runner
    clock: Clock
    """What times stages: the runner, or a device."""
    makers: tuple[str, ...]
    """Who measures: runner and metric with the distributions they come from, as part of every key."""
    metric_record: MetricRecord
    make_metric: "Callable[[], Metric]"
    evaluation: "DataSource"
    inputs: Mapping[str, np.ndarray]
    """The batch that latency and memory are measured on."""
    passed_over: frozenset[str]
    """Outputs that do not tell how good a stage is: keys and values for a cache, beside what the graph answers."""
    labels: Mapping[str, str]
    """Value name to its place in the structure, for errors per layer."""
    latency_plan: LatencyPlan

    def dimensions(self, model: Model) -> dict[str, int]:
        """Return the sizes that the measured batch gives to the graph's symbolic dimensions."""
        sizes: dict[str, int] = {}
        for value in model.graph.inputs:
            array = self.inputs.get(value.name or "")
            if array is None or value.shape is None:
                continue
            for dimension, size in zip(value.shape, array.shape, strict=False):
                if not isinstance(dimension, int) and dimension.value is not None:
                    sizes[dimension.value] = size
        return sizes


class StageMeter:
    """Fills ledger rows. Every number is stored as soon as it is known, so an interrupted run resumes."""

    def __init__(self, yardstick: Yardstick, store: Store, progress: Progress) -> None:
        self._yardstick = yardstick
        self._store = store
        self._progress = progress
        self._timed_now: set[str] = set()
        """Keys of what this run timed itself."""

    def measure(self, row: LedgerRow, stage: Stage, before: Stage | None, source: Stage) -> LedgerRow:
        """Return `row` with everything measured but time, which `time` measures for several stages at once.

        Args:
            row: What is known of the stage without measuring.
            stage: The stage.
            before: The stage before it; None for the source itself.
            source: The first stage of the run.
        """
        evaluation, reference = self._evaluation(stage, source), self._evaluation(source, source)
        unit, tier = self._yardstick.metric_record.unit, self._yardstick.runner.tier
        # Without labels the source is compared with itself, which is no number worth a row.
        if math.isfinite(evaluation.value):
            metric = Measurement(value=evaluation.value, unit=unit, tier=tier, samples=evaluation.samples)
            row = row.model_copy(update={"metric": metric})
        if before is not None:
            changes = {"metric_change": reference, "metric_step": self._evaluation(before, source)}
            for name, earlier in changes.items():
                if evaluation.scores is not None and earlier.scores is not None:
                    change = paired_difference(earlier.scores, evaluation.scores, right=_RIGHT.get(unit))
                    row = row.model_copy(update={name: change.measurement(unit=unit, tier=tier)})
        others = {} if before is None else {one.label: one for one in (before, source)}
        # Layers are compared in this process, with both graphs loaded at once.
        obstacle = obstacle_to_running(stage.model.ir) if before is not None else ""
        if obstacle:
            row = row.model_copy(update={"remarks": (*row.remarks, f"Layers were not compared: {obstacle}.")})
        return row.model_copy(
            update={
                "peak_memory_bytes": self._peak_memory(stage),
                "size_bytes": self._size(stage),
                "errors": tuple(self._output_error(other, stage) for other in others.values()),
                "layers": () if before is None or obstacle else self._layer_errors(before, stage),
            }
        )

    def time(self, stages: Sequence[tuple[LedgerRow, Stage, Stage | None]]) -> list[LedgerRow]:
        """Return the rows with their times, all taken in one comparison, so that any two of them may be compared.

        What is to be known of the comparison stands in the row of the source; why a stage does not run, in its own.

        Args:
            stages: Row, stage and the stage before it. The first is the source, which has none before it.
        """
        clock = self._yardstick.clock
        if not clock.measures_cost:
            return [row for row, _, _ in stages]
        source = stages[0][1]
        pairs = [[stage.label, before.label if before else ""] for _, stage, before in stages]
        plan = asdict(self._yardstick.latency_plan)
        key = self._key("latency", *(stage for _, stage, _ in stages), clock=clock, pairs=pairs, plan=plan)
        found = self._store.facts(key)
        if found is None:
            with self._progress.stage(f"timing {len(stages)} stages in turns"):
                comparison = clock.latency(
                    {stage.label: stage.entry for _, stage, _ in stages},
                    self._yardstick.inputs,
                    self._yardstick.latency_plan,
                )
            plain = {
                stage.label: {name: _as_json(one) for name, one in _numbers(comparison, stage, before, source).items()}
                for _, stage, before in stages
            }
            found = {"numbers": plain, "remarks": list(comparison.remarks), "failures": dict(comparison.failures)}
            found["taken"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            self._timed_now.add(key)
            # A failure may be one of the device, which another try does not meet; nor need it meet other work there.
            if not comparison.failures and comparison.waiting_share <= TOO_BUSY_SHARE:
                self._store.keep_facts(key, found)
        told = tuple(found["remarks"])
        if key not in self._timed_now and "taken" in found:
            told += (f"{TIMES_FROM}{found['taken']}, and are from the store; an empty $EDGESMITH_STORE times anew.",)
        rows = []
        for row, stage, _ in stages:
            update = {name: Measurement.model_validate(one) for name, one in found["numbers"][stage.label].items()}
            remarks = (*row.remarks, *told) if stage is source else row.remarks
            untimed = found.get("failures", {}).get(stage.label, "")
            rows.append(row.model_copy(update={**update, "remarks": remarks, "untimed": untimed}))
        return rows

    def _evaluation(self, stage: Stage, source: Stage) -> Evaluation:
        yardstick = self._yardstick
        reference = None if yardstick.metric_record.needs_labels else source
        if reference is not None and reference.digest == stage.digest:
            return Evaluation(math.inf, len(yardstick.evaluation))
        compared = (stage, reference) if reference else (stage,)
        metric = f"{yardstick.metric_record.name} {yardstick.metric_record.version}"
        passed_over, data = sorted(yardstick.passed_over), yardstick.evaluation.fingerprint
        key = self._key("metric", *compared, metric=metric, data=data, passed_over=passed_over)
        found = self._store.facts(key)
        if found is None:
            try:
                evaluation = evaluate(
                    yardstick.runner,
                    stage.entry,
                    yardstick.evaluation,
                    yardstick.make_metric,
                    reference=reference.entry if reference else None,
                    passed_over=passed_over,
                    plan=EvaluationPlan(batch_size=_EVALUATION_BATCH),
                    progress=self._progress,
                )
            except DataError as error:
                # No ledger is written that could tell which stage it was.
                what = f"{error.what} (stage: {stage.label})"
                raise DataError(what, expected=error.expected, why=error.why, fix=error.fix) from error
            scores = None if evaluation.scores is None else evaluation.scores.tolist()
            found = {"value": evaluation.value, "samples": evaluation.samples, "scores": scores}
            self._store.keep_facts(key, found)
        scores = None if found["scores"] is None else np.asarray(found["scores"], dtype=np.float64)
        return Evaluation(found["value"], found["samples"], scores)

    def _peak_memory(self, stage: Stage) -> Measurement | None:
        if not self._yardstick.runner.measures_cost:
            return None

        def measured() -> Measurement:
            with self._progress.stage(f"measuring memory of {stage.label}"):
                return self._yardstick.runner.peak_memory(stage.entry, self._yardstick.inputs).peak_bytes

        return self._stored(self._key("memory", stage), Measurement, measured)

    def _size(self, stage: Stage) -> Measurement:
        size = measure_size(stage.entry)
        return Measurement(value=size.file_bytes, unit="bytes", tier=self._yardstick.runner.tier)

    def _output_error(self, other: Stage, stage: Stage) -> OutputError:
        def measured() -> OutputError:
            data = self._yardstick.evaluation
            return output_error(
                self._yardstick.runner,
                other.entry,
                stage.entry,
                data.take(64),
                against=other.label,
                passed_over=passed_over,
                batch_size=_EVALUATION_BATCH,
                progress=self._progress,
            )

        data, passed_over = self._yardstick.evaluation.fingerprint, sorted(self._yardstick.passed_over)
        key = self._key("output-error", other, stage, data=data, label=other.label, passed_over=passed_over)
        return self._stored(key, OutputError, measured)

    def _layer_errors(self, before: Stage, stage: Stage) -> tuple[LayerError, ...]:
        labels = self._yardstick.labels
        data, round_half = self._yardstick.evaluation, self._yardstick.runner.rounds_half
        key = self._key("layers", before, stage, data=data.fingerprint, labels=dict(labels), round_half=round_half)
        found = self._store.facts(key)
        if found is None:
            errors = layer_errors(
                before.model.ir,
                stage.model.ir,
                labels,
                data.take(_LAYER_SAMPLES),
                batch_size=_LAYER_BATCH,
                threads=self._yardstick.runner.threads,
                round_half=round_half,
                progress=self._progress,
            )
            found = {"layers": [_as_json(error) for error in errors]}
            self._store.keep_facts(key, found)
        return tuple(LayerError.model_validate(error) for error in found["layers"])

    def _stored(self, key: str, kind: type[RecordT], measure: "Callable[[], RecordT]") -> RecordT:
        found = self._store.facts(key)
        if found is not None:
            return kind.model_validate(found)
        result = measure()
        self._store.keep_facts(key, _as_json(result))
        return result

    def _key(self, what: str, *stages: Stage, clock: Clock | None = None, **parts: object) -> str:
        measured_by = clock or self._yardstick.runner
        return make_key(
            {
                "kind": what,
                "stages": [stage.digest for stage in stages],
                "conditions": measured_by.conditions(self._yardstick.inputs).as_mapping(),
                "tier": measured_by.tier,
                "makers": list(self._yardstick.makers),
                "machine": _machine(),
                "versions": library_versions(),
                **parts,
            }
        )


def _numbers(
    comparison: LatencyComparison, stage: Stage, before: Stage | None, source: Stage
) -> dict[str, Measurement]:
    """Return the time of a stage and how much faster it is than two others, as far as all of them run."""
    if stage.label in comparison.failures:
        return {}
    others = {} if before is None else {"speedup": source.label, "speedup_step": before.label}
    return {"latency_ms": comparison.latency_ms(stage.label)} | {
        name: comparison.speedup(stage.label, other)
        for name, other in others.items()
        if other not in comparison.failures
    }


def _machine() -> list[str | int]:
    """Return what makes numbers of this machine differ from another's."""
    return [processor_name(), usable_cores(), platform.system(), platform.release()]


def _as_json(record: BaseModel) -> dict[str, Any]:
    """Return a record as strict JSON data, in which an infinity is null."""
    data: dict[str, Any] = json.loads(record.model_dump_json())
    return data
