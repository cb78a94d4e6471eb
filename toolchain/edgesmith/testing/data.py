"""Made-up samples for the tiny models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesmith.model import Model
    from edgesmith_calibration.sources import DataSource

_SIZES = {"sequence": 8, "height": 8, "width": 8}


def tiny_data(model: "Model", *, samples: int = 8, seed: int = 0) -> "DataSource":
    """Return random samples for a tiny model, with a random label for each row of its first output.

    Args:
        model: One of `edgesmith.testing.models`.
        samples: Number of samples.
        seed: Seed of inputs and labels. Use another one for evaluation than for calibration.
    """
    import numpy as np

    from edgesmith.execution.reference import ReferenceSession
    from edgesmith.execution.sample import sample_inputs
    from edgesmith_calibration.sources import ArraySource

    inputs = sample_inputs(model.ir, seed=seed, dimensions={"batch": samples, **_SIZES})
    *rows, classes = next(iter(ReferenceSession(model.ir).run(inputs).values())).shape
    labels = np.random.default_rng(seed).integers(0, classes, rows)
    return ArraySource(inputs, labels, f"{samples} random samples of seed {seed}")
