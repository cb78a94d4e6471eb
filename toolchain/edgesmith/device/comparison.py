"""Outputs of a device against those of the simulation, and the metric of both on the same samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgesmith.device.worker.archive import read_batch
from edgesmith.errors import MeasurementError
from edgesmith.ledger import OutputError
from edgesmith.measure.divergence import Divergence
from edgesmith.measure.reference import ReferenceRunner

if TYPE_CHECKING:
    from edgesmith_calibration.metrics import Metric
    from edgesmith_calibration.sources import Batch

SIMULATION = "simulation"
"""What a gap is against: the same graph in ONNX Runtime on the machine that asked."""


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """How far a device is from the simulation."""

    gaps: Mapping[str, OutputError]
    samples: int
    metric: float | None = None
    simulated_metric: float | None = None

    @property
    def worst(self) -> OutputError:
        """The worst of all outputs in each measure."""
        return OutputError(
            against=SIMULATION,
            sqnr_db=min(gap.sqnr_db for gap in self.gaps.values()),
            cosine=min(gap.cosine for gap in self.gaps.values()),
            max_abs=max(gap.max_abs for gap in self.gaps.values()),
        )


def compare_outputs(
    entry: Path,
    batches: "Sequence[Batch]",
    archive: Path,
    names: Sequence[str],
    make_metric: "Callable[[], Metric] | None" = None,
) -> OutputComparison:
    """Run the graph here on the same batches and compare, one batch at a time.

    Args:
        entry: The graph.
        batches: What the device ran.
        archive: The device's outputs.
        names: Names of the outputs, in the order of the archive.
        make_metric: Returns a fresh metric that needs labels; None where the data has none.

    Raises:
        MeasurementError: The device has other outputs than the graph, or none that are numbers.
    """
    divergences: dict[str, Divergence] = {}
    metrics = (make_metric(), make_metric()) if make_metric else None
    runner = ReferenceRunner()
    with np.load(archive, allow_pickle=False) as seen_batches:
        for index, (batch, simulated) in enumerate(zip(batches, runner.outputs(entry, batches), strict=True)):
            seen = _read(seen_batches, index, names)
            for name, expected in simulated.items():
                if name not in seen or seen[name].shape != expected.shape:
                    raise _other_outputs(name, expected, seen.get(name))
                if expected.dtype.kind in "fiub":
                    divergences.setdefault(name, Divergence()).update(expected, seen[name])
            for metric, outputs in zip(metrics or (), (seen, simulated), strict=False):
                metric.update(outputs, batch.labels)
    if not divergences:
        raise _nothing_to_compare(names)
    gaps = {
        name: OutputError(against=SIMULATION, sqnr_db=one.sqnr_db, cosine=one.cosine, max_abs=one.max_abs)
        for name, one in divergences.items()
    }
    results = [metric.result() for metric in metrics] if metrics else [None, None]
    return OutputComparison(gaps, sum(batch.size for batch in batches), *results)


def _read(archive: Mapping[str, np.ndarray], index: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        return dict(read_batch(archive, index, names))
    except (KeyError, ValueError, OSError) as error:
        raise MeasurementError(
            f"The device's outputs of batch {index} cannot be read: {type(error).__name__}: {error}.",
            expected=f"arrays for {', '.join(names)}",
            why="A gap that leaves samples out would look smaller than it is.",
            fix="Validate again; with --keep the archive stays on the device.",
        ) from error


def _other_outputs(name: str, expected: np.ndarray, seen: np.ndarray | None) -> MeasurementError:
    found = "missing" if seen is None else f"of shape {list(seen.shape)}"
    return MeasurementError(
        f"Output {name} of the device is {found}.",
        expected=f"shape {list(expected.shape)}, as in the simulation",
        why="Arrays of different shapes have no distance.",
        fix="Check that the engine was built from this artifact; remove an old engine.plan and validate again.",
    )


def _nothing_to_compare(names: Sequence[str]) -> MeasurementError:
    return MeasurementError(
        f"There is nothing to compare in the outputs {', '.join(names)}.",
        expected="at least one sample, and one output of numbers",
        why="The gap between simulation and device is computed from numbers.",
        fix="Give data with at least one evaluation sample.",
    )
