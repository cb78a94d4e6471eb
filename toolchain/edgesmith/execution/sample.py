"""Plausible random inputs for a graph that comes without data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.cache import find_caches

# Operators that hand the integers on unchanged, so that what bounds their output bounds their input.
_CARRIERS = frozenset(
    ("Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Slice", "Concat")
)

# Those among them that keep every element.
_COPIES = frozenset(("Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand"))

_DEFAULT_BATCH = 2
_DEFAULT_LENGTH = 16
_DEFAULT_IMAGE_SIDE = 224


def sample_inputs(
    model: ir.Model, *, seed: int = 0, dimensions: Mapping[str, int] | None = None
) -> dict[str, NDArray[Any]]:
    """Return random arrays that the graph accepts, by input name.

    Indices stay within the table they select from, a mask is all ones, an integer that the graph compares with
    a constant is that constant, and floats are standard normal.

    Args:
        model: The graph. Optional inputs that have an initializer are left out.
        seed: Seed of the generator; equal seeds give equal arrays.
        dimensions: Sizes of symbolic dimensions by name; one without a name is called "input:axis". Otherwise
            a symbolic first dimension is 2, the sides of an image are 224, a cache of keys and values is empty, and
            any other dimension is 16.
            Equal names get equal sizes.
    """
    generator = np.random.default_rng(seed)
    sizes = dict(dimensions or {})
    inputs: dict[str, NDArray[Any]] = {}
    # A cache of earlier tokens is as long as it likes, and the mask of an empty one is as long as the tokens.
    for cache in find_caches(model):
        if cache.input.shape is not None and cache.length_axis is not None:
            dimension = cache.input.shape[cache.length_axis]
            name = None if isinstance(dimension, int) else dimension.value
            sizes.setdefault(name or f"{cache.input.name}:{cache.length_axis}", 0)
    for value in model.graph.inputs:
        if value.name is None or value.name in model.graph.initializers:
            continue
        inputs[value.name] = _sample(value, _resolve(value, sizes), generator)
    return inputs


def _resolve(value: ir.Value, sizes: dict[str, int]) -> tuple[int, ...]:
    """Return the concrete shape of an input; newly chosen sizes are added to `sizes`."""
    shape: list[int] = []
    for axis, dimension in enumerate(value.shape or ()):
        if isinstance(dimension, int):
            shape.append(dimension)
            continue
        name = dimension.value or f"{value.name}:{axis}"
        rank = len(value.shape or ())
        # Recurrent states put the layers first and the batch second, without a name in older exports.
        batch = (axis == 0 and rank > 1) or (axis == 1 and rank == 3 and dimension.value is None)
        default = _DEFAULT_BATCH if batch else _DEFAULT_IMAGE_SIDE if rank == 4 and axis >= 2 else _DEFAULT_LENGTH
        shape.append(sizes.setdefault(name, default))
    return tuple(shape)


def _sample(value: ir.Value, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        compared = _compared_constant(value)
        if compared is not None:
            return np.full(shape, compared, dtype)
        rows = _index_bound(value)
        if rows is not None:
            return generator.integers(0, rows, shape).astype(dtype)
        return np.ones(shape, dtype)
    return generator.standard_normal(shape).astype(dtype)


def _consumers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return the uses of a value, following operators that only carry it along."""
    found: list[tuple[ir.Node, int]] = []
    pending, seen = [value], {value}
    while pending:
        for node, index in pending.pop().uses():
            if node.op_type in _CARRIERS and (index == 0 or node.op_type == "Concat"):
                new = [output for output in node.outputs if output not in seen]
                pending.extend(new)
                seen.update(new)
            else:
                found.append((node, index))
    return found


def _index_bound(value: ir.Value) -> int | None:
    """Return how many rows the smallest table or one-hot code has that this value selects from, or None."""
    bounds: list[int] = []
    for node, index in _consumers(value):
        if node.op_type in ("Gather", "GatherElements") and index == 1:
            bounds.extend(_table_rows(node))
        elif node.op_type == "OneHot" and index == 0:
            depth = _constant(node.inputs[1])
            if depth is not None and depth.size == 1:
                bounds.append(int(depth.reshape(-1)[0]))
        elif node.op_type == "Equal":
            # Some exporters write a one-hot code as a comparison with 0, 1, 2 and so on.
            codes = _constant(node.inputs[1 - index])
            if codes is not None and codes.size > 1 and np.array_equal(np.unique(codes), np.arange(codes.size)):
                bounds.append(codes.size)
    return min(bounds) if bounds else None


def _table_rows(node: ir.Node) -> list[int]:
    table = node.inputs[0]
    if table is None or table.shape is None or table.const_value is None:
        return []
    rows = table.shape[node.attributes["axis"].as_int() if "axis" in node.attributes else 0] if table.shape else None
    return [rows] if isinstance(rows, int) else []


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return a constant, also one that is cast, reshaped or expanded first, in the shape that it is stored in."""
    while value is not None:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return tensor.numpy()
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in _COPIES else None
    return None


def _compared_constant(value: ir.Value) -> int | None:
    """Return a scalar that the graph tests this scalar input against, or None."""
    if value.shape is None or len(value.shape) > 1:
        return None
    for node, index in _consumers(value):
        if node.op_type == "Equal":
            other = node.inputs[1 - index]
            constant = ir.convenience.get_const_tensor(other) if other is not None else None
            if constant is not None and constant.size == 1:
                return int(constant.numpy().reshape(()))
    return None
