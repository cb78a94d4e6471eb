"""Made-up samples for the tiny models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesmith.model import Model
    from edgesmith_calibration.sources import DataSource

_SIZES = {"sequence": 8, "height": 8, "width": 8}


def tiny_data(model: "Model", *, samples: int = 8, seed: int = 0) -> "DataSource":
    """Return random samples for a tiny model, with random labels: one a sample, or one a token for language models.

    Args:
        model: One of `edgesmith.testing.models`.
        samples: Number of samples.
        seed: Seed of inputs and labels. Use another one for evaluation than for calibration.
    """
    import numpy as np

    from edgesmith.execution.sample import sample_inputs
    from edgesmith_calibration.sources import ArraySource

    inputs = sample_inputs(model.ir, seed=seed, dimensions={"batch": samples, **_SIZES})
    shape = model.graph.outputs[0].shape
    classes = shape[-1] if shape is not None and shape.rank() else None
    counted = (samples, _SIZES["sequence"]) if model.task.kind == "causal-lm" else (samples,)
    labels = np.random.default_rng(seed).integers(0, classes if isinstance(classes, int) else 2, counted)
    return ArraySource(inputs, labels, f"{samples} random samples of seed {seed}")
