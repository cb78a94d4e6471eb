"""Writes what was decided into the graph: masks, filters gathered for each image, or fewer filters for good."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor
from edgesmith_ftwt.blocks import Block
from edgesmith_ftwt.options import Options
from edgesmith_ftwt.predictor import Predictor

Narrowing = Callable[[ir.Value, ir.Node, int], ir.Value]
"""Returns what takes the place of a stored array, given its reader and the axis of the filters."""


def write_mask(editor: GraphEditor, block: Block, predictor: Predictor, options: Options) -> None:
    """Set filters to zero for the reader, where the predictor does not choose them: shapes and work stay."""
    logits = _logits(editor, block, predictor, options)
    before, name = block.reader, block.name
    one = editor.add_initializer(f"{name}_one", np.array([1], np.int64))
    zero = editor.add_initializer(f"{name}_zero", np.zeros(1, np.float32))
    best = editor.insert_before(before, "TopK", (logits, one), {"axis": 1}, name=f"{name}_best", outputs=2).outputs[0]
    limit = editor.insert_before(before, "Min", (best, zero), name=f"{name}_limit").outputs[0]
    chosen = editor.insert_before(before, "GreaterOrEqual", (logits, limit), name=f"{name}_chosen").outputs[0]
    to = {"to": ir.DataType.FLOAT.value}
    mask = editor.insert_before(before, "Cast", (chosen,), to, name=f"{name}_mask").outputs[0]
    gated = editor.insert_before(before, "Mul", (block.gated, mask), name=f"{name}_gated").outputs[0]
    gated.shape, gated.type = block.gated.shape, block.gated.type
    before.replace_input_with(0, gated)


def write_gather(
    editor: GraphEditor, block: Block, predictor: Predictor, options: Options, count: int, before: Narrowing | None
) -> Narrowing:
    """Let the convolutions run with the `count` filters of the highest logits, summed over the batch.

    Args:
        editor: Edits the graph.
        block: What to gate.
        predictor: Its predictor, for all channels of the block's input.
        options: What the predictor looks at.
        count: How many filters run.
        before: What narrowed the block's input, if anything did.

    Returns:
        What narrows an array along this block's filters.
    """
    logits = _logits(editor, block, predictor, options, before)
    first, name = block.nodes[-1], block.name
    axes = editor.add_initializer(f"{name}_axes", np.array([0, 2, 3], np.int64))
    total = editor.insert_before(first, "ReduceSum", (logits, axes), {"keepdims": 0}, name=f"{name}_total").outputs[0]
    number = editor.add_initializer(f"{name}_count", np.array([count], np.int64))
    # In the order of the filters, so that an array is read in one direction.
    best = editor.insert_before(first, "TopK", (total, number), name=f"{name}_best", outputs=2).outputs[1]
    order = editor.insert_before(
        first, "TopK", (best, number), {"largest": 0}, name=f"{name}_order", outputs=2
    ).outputs[0]

    def gathered(value: ir.Value, reader: ir.Node, axis: int) -> ir.Value:
        node = editor.insert_before(reader, "Gather", (value, order), {"axis": axis}, name=f"{value.name}_chosen")
        result = node.outputs[0]
        result.type = value.type
        return result

    _narrow(block, count, gathered)
    return gathered


def write_fewer(editor: GraphEditor, block: Block, kept: NDArray[np.intp]) -> None:
    """Remove all filters but the kept ones, which are in order."""

    def sliced(value: ir.Value, reader: ir.Node, axis: int) -> ir.Value:
        del reader
        array = np.take(value.const_value.numpy(), kept, axis=axis)  # type: ignore[union-attr]
        return editor.add_initializer(f"{value.name}_kept", array)

    _narrow(block, len(kept), sliced)
    for name in [name for name, value in editor.graph.initializers.items() if not value.uses()]:
        editor.graph.initializers.pop(name)


def _logits(
    editor: GraphEditor, block: Block, predictor: Predictor, options: Options, before: Narrowing | None = None
) -> ir.Value:
    """Add the predictor before the block's first convolution, and return its logits [images, filters, 1, 1]."""
    first, name = block.nodes[-1], block.name
    pooling = "GlobalMaxPool" if options.pool == "max" else "GlobalAveragePool"
    seen = editor.insert_before(first, pooling, (first.inputs[0],), name=f"{name}_pooled").outputs[0]
    if options.softmax:
        seen = editor.insert_before(first, "Softmax", (seen,), {"axis": 1}, name=f"{name}_shares").outputs[0]
    weight = editor.add_initializer(f"{name}_predictor", predictor.weight.astype(np.float32)[:, :, None, None])
    bias = editor.add_initializer(f"{name}_predictor_bias", predictor.bias.astype(np.float32))
    logits = editor.insert_before(first, "Conv", (seen, weight, bias), name=f"{name}_logits")
    if before is not None:
        logits.replace_input_with(1, before(weight, logits, 1))
    return logits.outputs[0]


def _narrow(block: Block, width: int, narrowed: Narrowing) -> None:
    for place in block.places:
        value = place.node.inputs[place.port]
        if value is not None:
            place.node.replace_input_with(place.port, narrowed(value, place.node, place.axis))
    for node in block.depthwise:
        node.attributes["group"] = ir.AttrInt64("group", width)
    for value in (node.outputs[0] for node in block.nodes):
        if value.shape is not None:
            value.shape = ir.Shape([size if axis != 1 else width for axis, size in enumerate(value.shape)])
