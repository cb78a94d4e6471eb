"""Measures what a rewritten graph does to the outputs: noise against the float model, and the metric on labels."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.reference import ReferenceSession
from edgesmith.measure.divergence import LOWEST_DB, Divergence

if TYPE_CHECKING:
    from edgesmith.host.trial import Scoring
    from edgesmith_calibration.sources import Batch, DataSource

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Quality:
    """What a variant of a model keeps of it."""

    sqnr_db: float
    """Energy of the float outputs over that of the difference, of several outputs the worst; infinite when equal."""
    metric_drop: float | None = None
    """How much of the metric is lost, in its unit; negative is a gain. None without labels."""

    @property
    def noise(self) -> float:
        """Energy of the difference over energy of the outputs. Small independent errors add up in it."""
        return 0.0 if math.isinf(self.sqnr_db) else 10 ** (-self.sqnr_db / 10)


class OutputProbe:
    """Runs variants of one float model on the same samples and compares their outputs.

    Samples stream. The float outputs are kept in files of the scratch directory, so that the float model runs once
    and memory holds one batch.

    Args:
        model: The float model.
        data: Samples, one run each, or as many as the graph's fixed batch asks for.
        scoring: The metric; used where it needs labels and the data has them.
        scratch: An existing empty directory.
        batch_size: Samples per run.
        threads: Threads of the runtime.
    """

    def __init__(
        self,
        model: ir.Model,
        data: "DataSource",
        scratch: Path,
        *,
        scoring: "Scoring | None" = None,
        batch_size: int = 1,
        threads: int = 1,
    ) -> None:
        self._data, self._scratch, self._threads, self._batch_size = data, scratch, threads, batch_size
        labelled = scoring is not None and scoring.needs_labels and data.has_labels
        self._scoring = scoring if labelled else None
        self._names = {value.name for value in model.graph.inputs}
        self._count = 0
        self._outputs: tuple[str, ...] = ()
        session = self._session(model)
        for batch in data.batches(batch_size):
            outputs = {name: array for name, array in session.run(self._feed(batch)).items() if _is_number(array)}
            self._outputs = tuple(outputs)
            np.savez(self._file(self._count), *outputs.values())
            self._count += 1
        self._reference = self._score(self._stored())

    @property
    def samples(self) -> int:
        """Number of samples that every variant is measured on."""
        return len(self._data)

    @property
    def reference_metric(self) -> float | None:
        """The metric of the float model; None without labels."""
        return self._reference

    def measure(self, model: ir.Model) -> Quality:
        """Return the quality of a variant with the same inputs and outputs.

        Raises:
            ModelError: It does not load or run.
        """
        session = self._session(model)
        divergences: dict[str, Divergence] = {}
        metric = self._scoring.make() if self._scoring is not None else None
        for batch, expected in zip(self._data.batches(self._batch_size), self._stored(), strict=True):
            actual = session.run(self._feed(batch))
            for name, array in expected.items():
                divergences.setdefault(name, Divergence()).update(array, actual[name])
            if metric is not None:
                metric.update(actual, batch.labels, expected)
        sqnr_db = min((one.sqnr_db for one in divergences.values()), default=LOWEST_DB)
        return Quality(sqnr_db, self._drop(metric.result()) if metric is not None else None)

    def _drop(self, value: float) -> float | None:
        if self._scoring is None or self._reference is None:
            return None
        return self._reference - value if self._scoring.higher_is_better else value - self._reference

    def _score(self, outputs: Iterator[Outputs]) -> float | None:
        if self._scoring is None:
            return None
        metric = self._scoring.make()
        for batch, expected in zip(self._data.batches(self._batch_size), outputs, strict=True):
            metric.update(expected, batch.labels, expected)
        return metric.result()

    def _stored(self) -> Iterator[Outputs]:
        for index in range(self._count):
            with np.load(self._file(index), allow_pickle=False) as arrays:
                yield {name: arrays[f"arr_{position}"] for position, name in enumerate(self._outputs)}

    def _file(self, index: int) -> Path:
        return self._scratch / f"outputs-{index}.npz"

    def _feed(self, batch: "Batch") -> dict[str, NDArray[Any]]:
        return {name: array for name, array in batch.inputs.items() if name in self._names}

    def _session(self, model: ir.Model) -> ReferenceSession:
        # What users run is optimized as far as it goes.
        return ReferenceSession(model, optimization="all", threads=self._threads)


def _is_number(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
