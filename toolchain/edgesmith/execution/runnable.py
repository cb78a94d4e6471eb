"""Random inputs of sizes on which a graph runs, found by running it.

Exporters do not write down which sizes a dimension may have: a padding or a window rules out short signals, a fixed
Reshape all lengths but one. So a few sizes are tried.
"""

import re
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

_BATCH_NAME = re.compile(r"b|bs|bsz|.*batch.*", re.IGNORECASE)
_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))
_SEQUENCE_AND_STATES = (0, 5, 6)


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
    """Return sizes of the symbolic dimensions: `batch` for those of the batch, `length` elsewhere.

    Caches, and everything where `length` is None, are left to the sampler.
    """
    sizes: dict[str, int] = {}
    batches = batch_dimensions(model)
    caches = {cache.input for cache in find_caches(model) if cache.length_axis is not None}
    for value in model.graph.inputs:
        for axis in range(len(value.shape or ())):
            name = dimension_name(value, axis)
            if name in batches:
                sizes.setdefault(name, batch)
            elif name and length is not None and value not in caches:
                sizes.setdefault(name, length)
    return sizes


def batch_dimensions(model: ir.Model) -> frozenset[str]:
    """Return the names of the open dimensions of inputs that count samples.

    A name says it, or a recurrent node, which has the batch second. Otherwise the first dimension does, and without
    names the second of an input with three: recurrent states put layers first.
    """
    known = _recurrent_batches(model)
    names = {value: _open_axes(value) for value in model.graph.inputs}
    known |= {name for axes in names.values() for name in axes.values() if _BATCH_NAME.fullmatch(name)}
    batches: set[str] = set()
    for value, axes in names.items():
        rank = len(value.shape or ())
        unnamed = {axis for axis, name in axes.items() if name == f"{value.name}:{axis}"}
        likely = {
            axes[axis] for axis in axes if rank > 1 and (axis == 0 or (axis == 1 and axis in unnamed and rank == 3))
        }
        batches |= known.intersection(axes.values()) or likely
    return frozenset(batches)


def dimension_name(value: ir.Value, axis: int) -> str:
    """Return the name of an open dimension, "input:axis" where it has none of its own; empty for a number."""
    dimension = value.shape[axis] if value.shape is not None else 0
    return "" if isinstance(dimension, int) else dimension.value or f"{value.name}:{axis}"


def _open_axes(value: ir.Value) -> dict[int, str]:
    names = {axis: dimension_name(value, axis) for axis in range(len(value.shape or ()))}
    return {axis: name for axis, name in names.items() if name}


def _recurrent_batches(model: ir.Model) -> set[str]:
    """Return the names of the second dimensions of what recurrent nodes read: sequence, state and cell."""
    found: set[str] = set()
    for node in model.graph:
        if node.op_type in _RECURRENT and ("layout" not in node.attributes or not node.attributes["layout"].as_int()):
            read = [node.inputs[index] for index in _SEQUENCE_AND_STATES if index < len(node.inputs)]
            found |= {dimension_name(value, 1) for value in read if value is not None and len(value.shape or ()) == 3}
    return found - {""}


def _trials(model: ir.Model) -> Iterator[dict[str, int]]:
    for choice, batch in enumerate(BATCHES):
        for lengths in LENGTHS:
            yield dimensions_for(model, batch, lengths[choice])
