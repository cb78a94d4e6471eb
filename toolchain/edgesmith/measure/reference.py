"""The runner of targets whose hardware is not here: outputs from the numeric reference, and no times."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from edgesmith.errors import MeasurementError, ModelError
from edgesmith.measure.runner import (
    Conditions,
    LatencyComparison,
    LatencyPlan,
    MemoryPlan,
    MemoryUse,
    Runner,
    onnxruntime_conditions,
)

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.execution.reference import Optimization
    from edgesmith_calibration.sources import Batch

OPTIMIZATION: "Optimization" = "basic"
"""The level at which ONNX Runtime computes every quantized form as the graph says."""


class ReferenceRunner(Runner):
    """Computes outputs in ONNX Runtime on this machine. Times and memory of another device cannot be had here.

    Values in float16 are rounded to it, as the device does and ONNX Runtime on a CPU by itself does not.
    """

    measures_cost = False
    rounds_half = True

    def conditions(self, inputs: "Mapping[str, np.ndarray]") -> Conditions:
        """Return the conditions under which outputs are computed."""
        return onnxruntime_conditions(inputs, optimization=OPTIMIZATION, threads=self.threads)

    def latency(
        self, entries: Mapping[str, Path], inputs: "Mapping[str, np.ndarray]", plan: LatencyPlan | None = None
    ) -> LatencyComparison:
        """Refuse: a time on this machine says nothing about the device."""
        _refuse("latency")

    def peak_memory(self, entry: Path, inputs: "Mapping[str, np.ndarray]", plan: MemoryPlan | None = None) -> MemoryUse:
        """Refuse: memory on this machine says nothing about the device."""
        _refuse("peak memory")

    def outputs(self, entry: Path, batches: "Iterable[Batch]") -> "Iterator[Mapping[str, np.ndarray]]":
        """Yield the outputs of `entry` for each batch, by output name."""
        from edgesmith.execution.reference import ReferenceSession

        try:
            session = ReferenceSession(entry, optimization=OPTIMIZATION, threads=self.threads, round_half=True)
            for batch in batches:
                missing = [name for name in session.input_names if name not in batch.inputs]
                if missing:
                    raise MeasurementError(
                        f"no data for input {', '.join(missing)} of {entry}",
                        expected=f"arrays named {', '.join(session.input_names)}",
                        why="The graph cannot run without all of its inputs.",
                        fix=f"Rename the arrays (given: {', '.join(batch.inputs) or 'none'}) or add the missing ones.",
                    )
                yield session.run({name: batch.inputs[name] for name in session.input_names})
        except ModelError as error:
            # As every runner does, so that a caller knows which errors mean that there is no number.
            raise MeasurementError(error.what, expected=error.expected, why=error.why, fix=error.fix) from error


def _refuse(what: str) -> NoReturn:
    raise MeasurementError(
        f"the reference runner has no {what}",
        expected="a runner on the device",
        why="Numbers of this machine would be taken for the device's.",
        fix="Validate the artifact on the device.",
    )
