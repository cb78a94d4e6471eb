"""Writes a split weight into a graph: as products that are added, as a sum of weights, or as codes into a table."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith.graph.node_names import node_name
from edgesmith.graph.weight_sites import WeightSite
from edgesmith_quantization.arithmetic.blocks import code_limits
from edgesmith_quantization.arithmetic.packing import pack_codes
from edgesmith_quantization.arithmetic.splitting import SplitWeight, find_owners, split_by_owner
from edgesmith_quantization.forms.weight_form import insert_dequantize, replace_weight, scales_as

TABLE_OPSET = 21
"""First opset that casts codes of 4 bits."""


def write_branches(editor: GraphEditor, site: WeightSite, split: SplitWeight, *, split_bias: bool) -> None:
    """Let each reader of `site` multiply once with each part, and add the products. Edits the graph.

    The products are added by one Sum: ONNX Runtime folds a MatMul with a following Add into a Gemm, which has no kernel
    for weights of few bits.
    """
    parts = _dequantized_parts(editor, site, split)
    transposed: dict[ir.Value, ir.Value] = {}
    for node in site.readers:
        weights = parts
        if _reads_transposed(node, site):
            for part in parts:
                if part not in transposed:
                    flip = editor.insert_after(part, "Transpose", (part,), {"perm": [1, 0]}, name=f"{part.name}_flip")
                    transposed[part] = flip.outputs[0]
            weights = [transposed[part] for part in parts]
        _branch(editor, node, weights, _biases(editor, node, len(parts), split_bias))
    _drop(editor, site)


def write_merged(editor: GraphEditor, site: WeightSite, split: SplitWeight) -> None:
    """Let every reader of `site` read the sum of its dequantized parts. Edits the graph."""
    parts = _dequantized_parts(editor, site, split)
    last = parts[-1].producer()
    total = editor.insert_after(parts[-1], "Sum", parts, name=f"{site.name}_merged") if last is not None else None
    if total is None:  # a DequantizeLinear makes every part
        raise ValueError(site.name)
    replace_weight(editor, site.weight, _like(total.outputs[0], site.weight))


def write_compact(editor: GraphEditor, site: WeightSite, split: SplitWeight, *, whole: bool) -> None:
    """Let every reader of `site` read a table of all points of all parts at one code a weight. Edits the graph.

    The values are bit for bit those of the sum of the parts. ONNX Runtime looks them up once, when it loads the graph.

    Args:
        editor: Editor of the graph.
        site: The weight and its readers.
        split: The weight as parts that do not overlap, one scale a row.
        whole: Whether all rows share their scales.
    """
    dtype = site.weight.dtype or ir.DataType.FLOAT
    stored = [replace(part, scale=scales_as(part.scale, dtype).astype(np.float32)) for part in split.parts]
    codes, table = compact_codes(SplitWeight(tuple(stored), split.edges))
    table = table.astype(np.float16) if dtype == ir.DataType.FLOAT16 else table
    columns = site.is_matrix and site.output_axis > site.input_axis
    codes, table = (codes.T, table.T) if columns else (codes, table)
    shape = ir.Shape(codes.shape)
    packed = (
        ir.PackedTensor(pack_codes(codes, 4), ir.DataType.UINT4, shape=shape)
        if table.shape[int(not columns)] <= 16
        else ir.tensor(np.ascontiguousarray(codes))
    )
    index = editor.add_initializer(f"{site.name}_codes", packed)
    wide = editor.insert_after(site.weight, "Cast", (index,), {"to": int(ir.DataType.INT32)}, name=f"{site.name}_index")
    last = wide.outputs[0]
    if whole:
        entries = table[:, 0] if columns else table[0]
        values = editor.add_initializer(f"{site.name}_table", np.ascontiguousarray(entries))
        found = editor.insert_after(last, "Gather", (values, last), name=f"{site.name}_lookup")
    else:
        values = editor.add_initializer(f"{site.name}_table", np.ascontiguousarray(table))
        axis = {"axis": int(not columns)}
        found = editor.insert_after(last, "GatherElements", (values, last), axis, name=f"{site.name}_lookup")
    if codes.shape != site.shape:
        lookup = found.outputs[0]
        lookup.shape, lookup.type = shape, ir.TensorType(dtype)
        target = editor.add_initializer(f"{site.name}_shape", np.array(site.shape, np.int64))
        found = editor.insert_after(lookup, "Reshape", (lookup, target), name=f"{site.name}_reshape")
    replace_weight(editor, site.weight, _like(found.outputs[0], site.weight))


def compact_codes(split: SplitWeight) -> tuple[np.ndarray, np.ndarray]:
    """Return one code a weight, uint8 [rows, inputs], and the float32 table [rows, entries] that it counts in."""
    codes, tables = np.zeros(split.parts[0].codes.shape, np.uint8), []
    for place, part in enumerate(split.parts):
        lowest, highest = code_limits(part.bits, symmetric=part.zero_point is None)
        points = np.arange(lowest, highest + 1, dtype=np.float32) - part.grid.offset
        tables.append(points * part.scale)
        step = part.codes.astype(np.int16) - lowest
        entry = (step + (place << part.bits)).astype(np.uint8)
        zero = (part.grid.offset - lowest).astype(np.int16)
        np.copyto(codes, entry, where=(step != zero) if place else np.True_)
    return codes, np.concatenate(tables, axis=1)


def _dequantized_parts(editor: GraphEditor, site: WeightSite, split: SplitWeight) -> list[ir.Value]:
    # Each goes to where the weight exists, so the last one inserted comes first.
    names = [f"{site.name}_part{place}" for place in range(len(split.parts))]
    pairs = zip(reversed(split.parts), reversed(names), strict=True)
    return [insert_dequantize(editor, site, part, name).outputs[0] for part, name in pairs][::-1]


def _branch(editor: GraphEditor, node: ir.Node, weights: Sequence[ir.Value], biases: Sequence[ir.Value | None]) -> None:
    """Make `node` the first branch, insert the others before it, and a Sum behind it."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    output, others = node.outputs[0], []
    for place, (weight, bias) in enumerate(zip(weights[1:], biases[1:], strict=True), start=1):
        inputs = (node.inputs[0], weight) if bias is None else (node.inputs[0], weight, bias)
        name = f"{node_name(node)}_part{place}"
        branch = editor.insert_before(node, node.op_type, inputs, attributes, name=name)
        others.append(_like(branch.outputs[0], output))
    node.replace_input_with(1, weights[0])
    if len(node.inputs) > 2:
        node.replace_input_with(2, biases[0])
    editor.insert_on_uses(output, "Sum", others, name=f"{node_name(node)}_sum")


def _biases(editor: GraphEditor, node: ir.Node, parts: int, split: bool) -> list[ir.Value | None]:
    """Return the bias of each branch: all of it in the first one, or its clusters of values."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    whole: list[ir.Value | None] = [bias, *[None] * (parts - 1)]
    values = constant_value(bias) if split else None
    if bias is None or values is None or len(np.unique(values)) < parts or not np.isfinite(values).all():
        return whole
    row = values.reshape(1, -1)
    owners, _ = find_owners(row.astype(np.float32), parts, magnitude=False, per_row=False)
    return [
        editor.add_initializer(f"{bias.name}_part{place}", part.astype(values.dtype).reshape(values.shape))
        for place, part in enumerate(split_by_owner(row, owners, parts))
    ]


def _reads_transposed(node: ir.Node, site: WeightSite) -> bool:
    """Return whether a product reads the weight with its axes swapped, through a Transpose."""
    natural = 0 if node.op_type == "Conv" or node.attributes.get_int("transB") else 1
    return natural != site.output_axis


def _drop(editor: GraphEditor, site: WeightSite) -> None:
    """Remove the float weight, which nobody reads any more, and the Transpose nodes behind it."""
    editor.remove_unused(site.transposes)
    weight, producer = site.weight, site.weight.producer()
    if producer is not None:
        editor.remove_unused((producer,))
    elif weight.name is not None and not weight.uses() and not weight.is_graph_input():
        editor.graph.initializers.pop(weight.name, None)


def _like(value: ir.Value, model: ir.Value) -> ir.Value:
    value.shape, value.type = model.shape, model.type
    return value
