"""Random inputs of sizes on which a graph runs, found by running it.

Exporters do not write down which sizes a dimension may have: a padding or a window rules out short signals, a fixed
Reshape all lengths but one. So a few sizes are tried.
"""

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.errors import DataError, ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.cache import find_caches

LENGTHS: tuple[tuple[int | None, int | None], ...] = ((None, 24), (64, 64), (576, 512), (1, 1))
"""Sizes to try for dimensions that vary, a first and a second choice; None leaves it to the sampler."""
BATCHES = (2, 1)
"""The batch that goes with the first and the second choice."""


def runnable_inputs(model: ir.Model, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return random arrays on which the graph runs, by input name. Every call runs the graph at least once.

    Args:
        model: The graph. It is not changed.
        seed: Seed of the numbers; the sizes do not depend on it.

    Raises:
        ModelError: ONNX Runtime does not load the graph, or it ran on none of the sizes that were tried.
    """
    return sample_inputs(model, seed=seed, dimensions=runnable_dimensions(model))


def runnable_dimensions(model: ir.Model) -> dict[str, int]:
    """Return sizes on which the graph runs, in the form that `sample_inputs` takes as `dimensions`.

    Raises:
        ModelError: ONNX Runtime does not load the graph, or it ran on none of the sizes that were tried.
    """
    session = ReferenceSession(model)
    first: ModelError | DataError | None = None
    for dimensions in _trials(model):
        try:
            session.run(sample_inputs(model, dimensions=dimensions))
        except (ModelError, DataError) as error:
            first = first or error
        else:
            return dimensions
    inputs = ", ".join(f"{value.name} {value.shape}" for value in model.graph.inputs)
    raise ModelError(
        f"the graph runs on no random inputs that were tried ({inputs}): {first.what if first else 'no sizes'}",
        expected="inputs whose open dimensions may be 16, 64, 576 or 1",
        why="without data, the graph is timed and compared on random inputs",
        fix="pass data with --data, or export the graph with fixed sizes",
    ) from first


def dimensions_for(model: ir.Model, batch: int, length: int | None) -> dict[str, int]:
    """Return sizes of the symbolic dimensions: `batch` in front, `length` elsewhere, or what the sampler takes."""
    sizes: dict[str, int] = {}
    caches = {cache.input for cache in find_caches(model) if cache.length_axis is not None}
    for value in model.graph.inputs:
        rank = len(value.shape or ())
        for axis, dimension in enumerate(value.shape or ()):
            if isinstance(dimension, ir.SymbolicDim):
                name = dimension.value or f"{value.name}:{axis}"
                # Recurrent states put the batch second, without a name in older exports.
                if rank > 1 and (axis == 0 or (axis == 1 and not dimension.value and rank == 3)):
                    sizes.setdefault(name, batch)
                elif length is not None and value not in caches:
                    sizes.setdefault(name, length)
    return sizes


def _trials(model: ir.Model) -> Iterator[dict[str, int]]:
    for choice, batch in enumerate(BATCHES):
        for lengths in LENGTHS:
            yield dimensions_for(model, batch, lengths[choice])
