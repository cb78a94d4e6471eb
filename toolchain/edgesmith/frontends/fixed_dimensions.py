"""Gives the open dimensions of a graph's inputs fixed sizes, for runtimes that take no others."""

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from edgesmith.errors import ModelError
from edgesmith.frontends.normalize import normalize_with_remarks
from edgesmith.model import Model
from edgesmith_calibration.preprocessing import TextPreprocessing


def open_dimensions(model: ir.Model) -> dict[str, tuple[str, int]]:
    """Return each open dimension of the inputs by name, with the first input that has it and its axis.

    A dimension without a name is called "input:axis".
    """
    found: dict[str, tuple[str, int]] = {}
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                found.setdefault(size.value or f"{value.name}:{axis}", (str(value.name), axis))
    return found


def text_lengths(model: Model) -> dict[str, int]:
    """Return the length that texts are cut to for each open dimension that counts their tokens, by its name."""
    preprocessing = model.task.preprocessing
    if not isinstance(preprocessing, TextPreprocessing):
        return {}
    dimensions = open_dimensions(model.ir).items()
    tokens = {name for name, (value, axis) in dimensions if axis == 1 and value in preprocessing.inputs}
    return dict.fromkeys(tokens, preprocessing.max_length)


def fix_dimensions(model: Model, sizes: Mapping[str, int]) -> Model:
    """Return `model` with these sizes written into its inputs, and everything that follows from them computed.

    Texts are then padded to the length that their tokens have. Other dimensions stay open.

    Args:
        model: Not changed.
        sizes: Size by the dimension's name, as `open_dimensions` names it.

    Raises:
        ModelError: There is no such dimension, a size is no positive number, or the graph does not load with them.
    """
    known = open_dimensions(model.ir)
    for name, size in sizes.items():
        if name not in known or size < 1:
            raise ModelError(
                f"Dimension {name!r} cannot be fixed at {size}.",
                expected=f"a positive size for one of the open dimensions {', '.join(known) or '(there is none)'}",
                why="Sizes are written into the inputs of the graph, and everything else follows from them.",
                fix="Correct the name; `edgesmith inspect` lists the inputs with their dimensions.",
            )
    if not sizes:
        return model
    fixed = model.ir.clone()
    for value in fixed.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([_size(value, axis, sizes) for axis in range(len(value.shape))])
    for node in fixed.graph.all_nodes():
        for value in node.outputs:
            value.shape = None  # inferred anew; what was inferred before names the open dimensions
    for value in fixed.graph.outputs:
        value.shape = None
    normalized = normalize_with_remarks(fixed)
    remark = f"Fixed dimensions: {', '.join(f'{name} = {size}' for name, size in sizes.items())}."
    provenance = replace(
        model.provenance,
        remarks=(*model.provenance.remarks, remark, *normalized.remarks),
        fixed_sizes={**model.provenance.fixed_sizes, **sizes},
    )
    return replace(_with_text_length(model, sizes), ir=normalized.model, provenance=provenance)


def _size(value: ir.Value, axis: int, sizes: Mapping[str, int]) -> int | ir.SymbolicDim:
    size = (value.shape or ())[axis]
    return size if isinstance(size, int) else sizes.get(size.value or f"{value.name}:{axis}", size)


def _with_text_length(model: Model, sizes: Mapping[str, int]) -> Model:
    """Return `model` with its texts cut and padded to the length that its token inputs now have."""
    preprocessing = model.task.preprocessing
    if not isinstance(preprocessing, TextPreprocessing):
        return model
    lengths = {
        _size(value, 1, sizes)
        for value in model.graph.inputs
        if value.name in preprocessing.inputs and value.shape is not None and len(value.shape) > 1
    }
    length = lengths.pop() if len(lengths) == 1 else None
    if not isinstance(length, int):
        return model
    padded = preprocessing.model_copy(update={"max_length": length, "pad_to": "max_length"})
    return replace(model, task=model.task.model_copy(update={"preprocessing": padded}))
