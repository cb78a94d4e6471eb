"""Finds the optimization profile of a graph: smallest, most usual and largest shape of its inputs.

Exporters do not write down which sizes a dimension may have, so a few are tried by running the graph.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import combinations
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.data import RandomInputs
from edgesmith.errors import DataError, ModelError
from edgesmith.execution.half_rounding import with_half_rounding
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import batch_dimensions, dimension_name, dimensions_for, runnable_dimensions
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.cache import find_caches
from edgesmith.model import Model
from edgesmith_calibration.preprocessing import TextPreprocessing

if TYPE_CHECKING:
    from edgesmith_calibration.sources import DataSource

Shapes = dict[str, dict[str, list[int]]]

_LARGEST_BATCH = 8
_USUAL_LENGTH, _USUAL_SIDE = 128, 224
_IMAGE_RANK = 4
_LONGEST = (512, 256, 128, 64, 32, 16, 8)
_SHORTEST = (1, 8, 16, 32, 64, 128, 256)
_MOST_MASKS = 2
"""Lengths that may count earlier tokens together with new ones."""
_SAMPLES = 32
"""Samples whose shapes are looked at."""

Sizes = Mapping[str, int]
"""Size of each open dimension, by its name."""


def optimization_shapes(model: Model, samples: "DataSource | None" = None) -> Shapes:
    """Return smallest, most usual and largest shape of each input that has a dimension without a number.

    The batch is 1 to 8, where the graph takes 8, and tuned for 1. Other open dimensions are lengths. They are tuned for
    the sample of the middle size; without samples for what the preprocessing cuts to, for images of 224, or for 128.
    The largest length is the first of that, the longest sample, 512, 256 and so on, on which the graph runs: tables of
    positions end somewhere. The smallest is the first of 1, 8, 16 and so on. A graph that runs at none of them keeps
    one shape. Caches of earlier tokens may be empty and as long as the longest, and a decoder with caches is tuned for
    one step, unless samples have something in the caches.

    Args:
        model: The graph. Nothing is searched if all its inputs have numbers for dimensions.
        samples: Data whose shapes are typical. Random inputs are not.

    Raises:
        ModelError: There are no samples, and the graph runs on none of the sizes that were tried.
    """
    if all(isinstance(size, int) for value in model.graph.inputs for size in value.shape or ()):
        return {}
    # ONNX Runtime has no kernel in float16 for some operators; in float32 a graph takes the same sizes.
    graph = with_half_rounding(model.ir)
    session = ReferenceSession(graph)
    seen = _sample_sizes(graph, samples)
    slots = _slot_names(graph)
    known = {size for sizes in seen for name, size in sizes.items() if name not in slots and size}
    cut = _cut(model)
    longest = _first_that_runs(session, graph, sorted(known | {*((cut,) if cut else _LONGEST)}, reverse=True))
    if longest is None:
        return _one_shape(graph, seen)
    usual = _usual(session, graph, seen, cut, longest)
    least = min((size for name, size in usual.items() if name not in slots and size), default=1)
    below = sorted(length for length in known | {*_SHORTEST} if length <= least)
    shortest = _first_that_runs(session, graph, below)
    batch = _LARGEST_BATCH if _runs(session, graph, _LARGEST_BATCH, shortest or longest) else 1
    bounds: dict[str, dict[str, int]] = {bound: {} for bound in ("min", "opt", "max")}
    for name, size in usual.items():
        # Lengths of one sample need not be equal, so one may lie outside of the equal ones that were tried.
        own = [size, *(sizes[name] for sizes in seen if name in sizes)]
        bounds["min"][name], bounds["opt"][name] = min([shortest or size, *own]), size
        bounds["max"][name] = max([longest, *own])
    if slots:
        _make_room_for_caches(session, graph, bounds, slots)
    for name in batch_dimensions(graph):
        bounds["min"][name], bounds["opt"][name], bounds["max"][name] = 1, 1, batch
    return _shapes(graph, bounds)


def _usual(
    session: ReferenceSession, model: ir.Model, seen: Sequence[Sizes], cut: int | None, longest: int
) -> dict[str, int]:
    """Return the lengths to tune for."""
    is_image = any(
        len(value.shape) == _IMAGE_RANK and not isinstance(value.shape[-1], int)
        for value in model.graph.inputs
        if value.shape is not None
    )
    preferred = cut or (_USUAL_SIDE if is_image else _USUAL_LENGTH)
    fits = preferred < longest and _runs(session, model, 1, preferred)
    uniform = dict.fromkeys(_length_names(model), preferred if fits else longest) | dict.fromkeys(_slot_names(model), 0)
    return {**uniform, **seen[len(seen) // 2]} if seen else uniform


def _make_room_for_caches(
    session: ReferenceSession, model: ir.Model, bounds: Mapping[str, dict[str, int]], slots: Set[str]
) -> None:
    """Let caches be empty, let masks cover them too, and tune for one step; `bounds` are those for empty caches."""
    low, usual, high = bounds["min"], bounds["opt"], bounds["max"]
    low.update(dict.fromkeys(slots, 0))
    totals = _total_names(session, model, low, slots)
    for name in totals:
        # The longest of all must fit together, or the compiler finds the profile inconsistent.
        high[name] += max(high[slot] for slot in slots)
    if not any(usual[slot] for slot in slots):
        step = {name: low[name] for name in usual.keys() - slots - totals}
        earlier = max((usual[name] - new for name, new in step.items()), default=0)
        step |= dict.fromkeys(slots, earlier) | {name: usual[name] for name in totals}
        if _runs_at(session, model, step):
            usual.update(step)


def _total_names(session: ReferenceSession, model: ir.Model, low: Sizes, slots: Set[str]) -> frozenset[str]:
    """Return the lengths that count earlier tokens and new ones, as those of masks do; none where no choice runs."""
    names = sorted(low.keys() - slots)
    # More than one token, since a mask of one fits all.
    sizes = {name: low[name] + 1 for name in names} | dict.fromkeys(slots, 3)
    for totals in (chosen for count in range(_MOST_MASKS + 1) for chosen in combinations(names, count)):
        if _runs_at(session, model, sizes | {name: sizes[name] + 3 for name in totals}):
            return frozenset(totals)
    return frozenset()


def _one_shape(model: ir.Model, seen: Sequence[Sizes]) -> Shapes:
    """Return the shape of the middle sample, or one on which the graph runs, for all three bounds."""
    if seen:
        sizes = {**dict.fromkeys(batch_dimensions(model), 1), **seen[len(seen) // 2]}
    else:
        sizes = runnable_dimensions(model)
    fixed = {name: list(array.shape) for name, array in sample_inputs(model, dimensions=sizes).items()}
    return {name: {"min": shape, "opt": shape, "max": shape} for name, shape in fixed.items()}


def _sample_sizes(model: ir.Model, samples: "DataSource | None") -> list[dict[str, int]]:
    """Return the sizes of open lengths in each of some samples, from the smallest sample to the largest."""
    if samples is None or samples.description == RandomInputs.description:
        return []
    batches = batch_dimensions(model)
    found: list[dict[str, int]] = []
    for batch in samples.take(_SAMPLES).batches(1):
        sizes: dict[str, int] = {}
        for value in model.graph.inputs:
            array = batch.inputs.get(str(value.name))
            if array is not None and value.shape is not None and array.ndim == len(value.shape):
                sizes |= _lengths(value, array, batches)
        found.append(sizes)
    return sorted((sizes for sizes in found if sizes), key=lambda sizes: sum(sizes.values()))


def _lengths(value: ir.Value, array: NDArray[Any], batches: frozenset[str]) -> dict[str, int]:
    names = {axis: dimension_name(value, axis) for axis in range(1, array.ndim)}
    # The first dimension of data counts samples, whatever the graph takes it for.
    return {name: array.shape[axis] for axis, name in names.items() if name and name not in batches}


def _cut(model: Model) -> int | None:
    preprocessing = model.task.preprocessing
    return preprocessing.max_length if isinstance(preprocessing, TextPreprocessing) else None


def _length_names(model: ir.Model) -> list[str]:
    """Return the names of the open dimensions of inputs that do not count samples."""
    inputs = [(value, axis) for value in model.graph.inputs for axis in range(len(value.shape or ()))]
    batches = batch_dimensions(model)
    return [name for name in (dimension_name(*each) for each in inputs) if name and name not in batches]


def _slot_names(model: ir.Model) -> frozenset[str]:
    """Return the names of the open dimensions that count the tokens in caches."""
    caches = [cache for cache in find_caches(model) if cache.length_axis is not None]
    return frozenset(dimension_name(cache.input, cache.length_axis or 0) for cache in caches) - batch_dimensions(model)


def _shapes(model: ir.Model, bounds: Mapping[str, Sizes]) -> Shapes:
    return {
        str(value.name): {bound: _shape(value, sizes) for bound, sizes in bounds.items()}
        for value in model.graph.inputs
        if value.shape is not None and not all(isinstance(size, int) for size in value.shape)
    }


def _shape(value: ir.Value, sizes: Sizes) -> list[int]:
    names = [dimension_name(value, axis) for axis in range(len(value.shape or ()))]
    return [sizes[name] if name else int(size) for name, size in zip(names, value.shape or (), strict=True)]  # type: ignore[arg-type]


def _first_that_runs(session: ReferenceSession, model: ir.Model, lengths: Iterable[int]) -> int | None:
    return next((length for length in lengths if _runs(session, model, 1, length)), None)


def _runs(session: ReferenceSession, model: ir.Model, batch: int, length: int) -> bool:
    return _runs_at(session, model, dimensions_for(model, batch, length))


def _runs_at(session: ReferenceSession, model: ir.Model, sizes: Sizes) -> bool:
    """Return whether the graph runs on sizes of its open dimensions, with one sample where they do not say."""
    try:
        session.run(sample_inputs(model, dimensions={**dict.fromkeys(batch_dimensions(model), 1), **sizes}))
    except (ModelError, DataError):
        return False
    return True
