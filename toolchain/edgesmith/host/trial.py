"""What a method may try while it works: lower and time a model on the run's target, and score it as the run will."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgesmith.ledger import Measurement
    from edgesmith.model import Model
    from edgesmith_calibration.metrics import Metric


class Trial(Protocol):
    """Lowers and times models that a method is trying out, on the target and the clock of the run.

    A result that depends on times is not deterministic: the record of such a method says so. Where only one option asks
    for times, the record stays as it is, the step is stored as others are, and the page of the method says it.
    """

    @property
    def measures_latency(self) -> bool:
        """Whether there are times: of the target's runner where it has them, or of the device that `--on` names."""
        ...

    def lower(self, model: "Model") -> "Model":
        """Return `model` in the form that the target would ship, proven equal to it.

        Raises:
            EdgesmithError: The target does not take it.
        """
        ...

    def speedups(
        self, models: "Sequence[Model]", baseline: "Model", *, max_seconds: float = 30.0
    ) -> "tuple[Measurement, ...]":
        """Return how many times faster each model is than `baseline`, as medians with quartiles of their ratios.

        All are built and timed in turns within one comparison, so that the results may also be compared with each
        other. Above 1 is faster. A model that the device does not run is told as far too slow.

        Args:
            models: What is tried, as `lower` returned it.
            baseline: What it is compared with, as `lower` returned it.
            max_seconds: Time for all timed rounds together; building comes on top.

        Raises:
            EdgesmithError: The target or the runner does not take one of them, or the runner has no times.
        """
        ...


@dataclass(frozen=True, slots=True)
class Scoring:
    """The metric that the run is judged by. A method may use it on calibration data only."""

    name: str
    make: "Callable[[], Metric]"
    """Returns a fresh metric."""
    higher_is_better: bool = True
    unit: str = ""
    needs_labels: bool = True
