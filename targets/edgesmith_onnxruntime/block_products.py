"""Lowers weights of few bits: products with them, and embeddings that select from them.

ONNX Runtime would dequantize such a weight in every run, or fuse it into MatMulNBits, which multiplies few rows fast
(one token after another) and many rows slower than a float product. So a weight is either packed for MatMulNBits, or
expanded while the graph loads: written with Cast, Sub and Mul, which ONNX Runtime computes once when all their inputs
are constant, as it never does with DequantizeLinear. The file keeps the few bits; memory holds the expanded weight.

Where a product says that its inputs may be rounded to 8 bits (`ACTIVATIONS_KEY`), the weight is expanded to 8 bits per
channel, each row of the input gets a scale of its own, and the product runs in integers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor, constant_tensor
from edgesmith.host.dialect import ACTIVATIONS_KEY
from edgesmith_onnxruntime.nbits import pack_for_nbits, write_nbits
from edgesmith_onnxruntime.stored_weights import StoredWeight, find_stored_weights, source_weight

Float = NDArray[np.float32]

FEW_ROWS = 16
"""Below so many rows MatMulNBits is faster than an integer product of expanded weights."""
_FLOAT_LEVEL, _INT8_LEVEL = 1, 4
"""Accuracy levels of MatMulNBits: inputs in float; inputs rounded to 8 bits in blocks."""
_SMALLEST_PEAK = 1e-30
"""A row or channel of zeros is divided by this instead of by 0."""


@dataclass(frozen=True, slots=True)
class InputRange:
    """What was seen of the input of a product."""

    rows: int
    """Rows of one sample."""
    peaks: Float
    """Largest magnitude of each channel, float32 [inputs]."""
    loads: Float
    """Root mean square of each channel in rows that are divided by their largest magnitude, float32 [inputs]."""
    evened_by: Literal["peaks", "loads"] = "peaks"
    """What `balance` evens out. Peaks of a few tokens, a thousand times those of others, say nothing of the others."""

    @property
    def balance(self) -> Float:
        """What channels are divided by and weights multiplied with, so that a few channels do not rule all rows.

        The square root of the peaks, or of the loads, as powers of two, which change no bits of what is rounded (Xiao
        et al. 2023, SmoothQuant, arXiv 2211.10438, equation 4, with strength 0.5 and the weights taken as even).
        """
        sizes = self.peaks if self.evened_by == "peaks" else self.loads
        floor = max(float(sizes.max(initial=0.0)) * 1e-4, _SMALLEST_PEAK)
        return np.exp2(np.rint(np.log2(np.maximum(sizes, floor)) / 2)).astype(np.float32)


def rounds_inputs(node: ir.Node) -> bool:
    """Return whether a product of a weight of few bits allows its input to be rounded to 8 bits."""
    return node.metadata_props.get(ACTIVATIONS_KEY) == "int8" and weight_node(node) is not None


def weight_node(node: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear behind the weight of a MatMul or a plain Gemm, or None."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    if node.op_type == "Gemm" and (not plain or bool(node.attributes.get_int("transA", 0))):
        return None
    return source_weight(node.inputs[1])


def lower_embeddings(graph: ir.Graph) -> int:
    """Let Gather nodes select codes and dequantize what they selected, not the whole table; return how many."""
    editor, lowered = GraphEditor(graph), 0
    for weight in find_stored_weights(graph):
        if not _has_scales_by_row(weight):
            continue
        gathers = [node for node, index in weight.dequantize.outputs[0].uses() if index == 0 and _selects_rows(node)]
        if gathers and weight.bits == 4 and weight.block_size:
            graph.opset_imports.setdefault("com.microsoft", 1)
            for node in gathers:
                editor.take_over(node, _gather_blocks(editor, node, weight))
        elif gathers and (not weight.block_size or weight.shape[1] % weight.block_size == 0):
            stored = _in_bytes(editor, weight)
            for node in gathers:
                editor.take_over(node, _gather_bytes(editor, node, weight, *stored))
        else:
            continue
        lowered += len(gathers)
    return lowered


def lower_float_products(graph: ir.Graph, inputs_seen: Mapping[str, InputRange] | None = None) -> int:
    """Pack or expand the weights of products that keep their inputs in float; return how many weights.

    Args:
        graph: Edited in place.
        inputs_seen: What was seen of inputs, by value name. A weight that many rows are multiplied with is expanded.
    """
    editor, lowered = GraphEditor(graph), 0
    for weight in find_stored_weights(graph):
        products = _products(weight)
        if not products or any(rounds_inputs(node) for node in products):
            continue
        seen = [(inputs_seen or {}).get(str(_input(node).name)) for node in products]
        many = any(each is not None and each.rows >= FEW_ROWS for each in seen)
        packed = pack_for_nbits(editor, weight, products) if weight.bits == 4 and not many else None
        if packed is not None:
            for node in products:
                write_nbits(editor, node, weight, packed, _FLOAT_LEVEL)
        else:
            expand(editor, weight)
        lowered += 1
    return lowered


def lower_rounded_products(graph: ir.Graph, inputs_seen: Mapping[str, InputRange]) -> int:
    """Run products that allow it with inputs rounded to 8 bits row by row; return how many.

    Args:
        graph: Edited in place.
        inputs_seen: What was seen of the inputs of these products, by value name.
    """
    editor, lowered = GraphEditor(graph), 0
    inputs: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
    for weight in find_stored_weights(graph):
        products = [node for node in _products(weight) if rounds_inputs(node)]
        few = [node for node in products if inputs_seen[str(_input(node).name)].rows < FEW_ROWS]
        packed = pack_for_nbits(editor, weight, few) if few and len(few) == len(products) else None
        if packed is not None:
            for node in few:
                write_nbits(editor, node, weight, packed, _INT8_LEVEL)
        elif products:
            expand(editor, weight)
            for node in products:
                _write_integer_product(editor, node, inputs_seen[str(_input(node).name)].balance, inputs)
        lowered += len(products)
    return lowered


def expand(editor: GraphEditor, weight: StoredWeight) -> None:
    """Replace a DequantizeLinear by Cast, Sub and Mul, which are computed while the graph loads. Exact."""
    node, name = weight.dequantize, weight.dequantize.name or "weight"

    def insert(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return editor.insert_before(node, op_type, inputs, attributes, name=f"{name}_{op_type}").outputs[0]

    def constant(part: str, values: NDArray[np.int64] | list[int]) -> ir.Value:
        return editor.add_initializer(f"{name}_{part}", np.asarray(values, np.int64))

    shape, axis, size = list(weight.shape), weight.axis, weight.block_size
    fills = bool(size) and shape[axis] % (size or 1) == 0
    cut = [*shape[:axis], -1, size or 1, *shape[axis + 1 :]]

    def spread(parameter: ir.Value) -> ir.Value:
        """Return scales or zero points in a shape that goes with the values."""
        if size and not fills:  # the last block is shorter, so each value fetches those of its block
            return insert("Gather", parameter, constant("block_of", np.arange(shape[axis]) // size), axis=axis)
        return insert("Unsqueeze", parameter, constant("within", [axis + 1 if size else 1 - axis]))

    to_float = int(ir.DataType.FLOAT)
    values = insert("Cast", weight.codes, to=to_float)
    if fills:
        values = insert("Reshape", values, constant("cut", cut))
    if weight.zero_point is not None:
        values = insert("Sub", values, spread(insert("Cast", weight.zero_point, to=to_float)))
    values = insert("Mul", values, spread(weight.scale))
    editor.take_over(node, insert("Reshape", values, constant("whole", shape)) if fills else values)


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:  # products have two inputs
        raise ValueError(node.name)
    return value


def _products(weight: StoredWeight) -> list[ir.Node]:
    """Return the products that read a weight, also behind what moves or shifts it, in graph order."""
    found: list[ir.Node] = []
    pending = [weight.dequantize.outputs[0]]
    while pending:
        for node, _ in tuple(pending.pop().uses()):
            if weight_node(node) is weight.dequantize:
                found.append(node)
            elif source_weight(node.outputs[0]) is weight.dequantize:
                pending.append(node.outputs[0])
    return list(dict.fromkeys(found))


def _has_scales_by_row(weight: StoredWeight) -> bool:
    """Return whether scales are selected as rows are: one of each row, or one of each block of a row."""
    scale = constant_tensor(weight.scale)
    by_row = scale is not None and scale.shape[0] == weight.shape[0]  # a single scale may stand for all rows
    return by_row and weight.axis == (1 if weight.block_size else 0)


def _selects_rows(node: ir.Node) -> bool:
    """Return whether a node is a Gather of rows with indices of known rank."""
    if node.op_type != "Gather" or node.domain != "" or node.attributes.get_int("axis", 0) % 2 != 0:
        return False
    return node.inputs[1] is not None and node.inputs[1].shape is not None


def _in_bytes(editor: GraphEditor, weight: StoredWeight) -> tuple[ir.Value, ir.Value | None]:
    """Return codes and zero points in whole bytes, which Gather selects; those of fewer bits are cast at load."""

    def cast(value: ir.Value) -> ir.Value:
        if weight.bits == 8:
            return value
        to = int(ir.DataType.INT8 if value.dtype in (ir.DataType.INT4, ir.DataType.INT2) else ir.DataType.UINT8)
        name = f"{value.name}_bytes"
        return editor.insert_before(weight.dequantize, "Cast", (value,), {"to": to}, name=name).outputs[0]

    return cast(weight.codes), None if weight.zero_point is None else cast(weight.zero_point)


def _gather_blocks(editor: GraphEditor, node: ir.Node, weight: StoredWeight) -> ir.Value:
    inputs = [weight.codes, node.inputs[1], weight.scale, *([weight.zero_point] if weight.zero_point else [])]
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": weight.block_size or 0, "bits": weight.bits}
    name = f"{node.name}_blocks"
    return editor.insert_before(
        node, "GatherBlockQuantized", inputs, attributes, domain="com.microsoft", name=name
    ).outputs[0]


def _gather_bytes(
    editor: GraphEditor, node: ir.Node, weight: StoredWeight, codes: ir.Value, zero_point: ir.Value | None
) -> ir.Value:
    """Select codes, scales and zero points of rows, and dequantize these rows, block by block where they have blocks.

    Args:
        editor: Editor of the graph.
        node: The Gather.
        weight: Its table. Blocks fill the rows.
        codes: The codes in whole bytes.
        zero_point: The zero points in whole bytes.
    """
    name, size, width = node.name or "embedding", weight.block_size, weight.shape[1]
    indices = node.inputs[1]

    def insert(op_type: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        return editor.insert_before(node, op_type, inputs, attributes, name=f"{name}_{op_type}").outputs[0]

    def select(value: ir.Value) -> ir.Value:
        return insert("Gather", value, indices, axis=0)

    def column(value: ir.Value) -> ir.Value:
        return insert("Unsqueeze", value, editor.add_initializer(f"{name}_last", np.array([-1], np.int64)))

    def reshape(value: ir.Value, part: str, *last: int) -> ir.Value:
        # All sizes are given, since none can be inferred where no rows are selected; 0 keeps a dimension.
        rank = len(indices.shape) if indices is not None and indices.shape is not None else 0
        shape = np.array([*[0] * rank, *last], np.int64)
        return insert("Reshape", value, editor.add_initializer(f"{name}_{part}", shape))

    to_float = int(ir.DataType.FLOAT)
    values = insert("Cast", select(codes), to=to_float)
    if size:
        values = reshape(values, "blocks", width // size, size)
    if zero_point is not None:
        values = insert("Sub", values, column(insert("Cast", select(zero_point), to=to_float)))
    values = insert("Mul", values, column(select(weight.scale)))
    return reshape(values, "whole", width) if size else values


def _write_integer_product(
    editor: GraphEditor, node: ir.Node, balance: Float, inputs: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]]
) -> None:
    """Multiply the codes of an input with 8-bit codes of the weight, and scale each row and channel of the result."""
    activation, weight = _input(node), node.inputs[1]
    if weight is None:  # the product of a stored weight has one
        raise ValueError(node.name)
    if activation not in inputs:
        factors = editor.add_initializer(f"{activation.name}_balance", balance)
        inputs[activation] = (*_write_row_codes(editor, activation, factors), factors)
    codes, peak, factors = inputs[activation]
    name = node.name or node.op_type

    def insert(op_type: str, *values: ir.Value, domain: str = "", **attributes: int) -> ir.Value:
        added = editor.insert_before(node, op_type, values, attributes, domain=domain, name=f"{name}_{op_type}")
        return added.outputs[0]

    channels_first = bool(node.attributes.get_int("transB", 0))
    weight_codes, scale = _write_channel_codes(editor, node, weight, factors, channels_first)
    zero = editor.add_initializer(f"{name}_zero", np.zeros((), np.int8))
    row_scale = editor.add_initializer(f"{name}_row_scale", np.array(1 / 127, np.float32))
    middle = editor.add_initializer(f"{name}_middle", np.array(128, np.uint8))
    product = insert(
        "MatMulIntegerToFloat", codes, weight_codes, row_scale, scale, middle, zero, domain="com.microsoft"
    )
    result = insert("Mul", product, peak)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = insert("Add", result, node.inputs[2])
    editor.graph.opset_imports.setdefault("com.microsoft", 1)
    editor.take_over(node, result)


def _write_row_codes(editor: GraphEditor, value: ir.Value, balance: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return codes of a value divided by `balance`, uint8 around 128, and the largest magnitude of each such row."""
    stem = value.name or "input"
    value = editor.insert_after(value, "Div", (value, balance), name=f"{stem}_balanced").outputs[0]
    last = editor.add_initializer(f"{stem}_last", np.array([-1], np.int64))
    floor = editor.add_initializer(f"{stem}_floor", np.array(_SMALLEST_PEAK, np.float32))
    scale = editor.add_initializer(f"{stem}_row_scale", np.array(1 / 127, np.float32))
    middle = editor.add_initializer(f"{stem}_middle", np.array(128, np.uint8))
    magnitude = editor.insert_after(value, "Abs", (value,), name=f"{stem}_magnitude").outputs[0]
    highest = editor.insert_after(magnitude, "ReduceMax", (magnitude, last), {"keepdims": 1}, name=f"{stem}_highest")
    peak = editor.insert_after(highest.outputs[0], "Max", (highest.outputs[0], floor), name=f"{stem}_peak").outputs[0]
    row = editor.insert_after(peak, "Div", (value, peak), name=f"{stem}_row").outputs[0]
    codes = editor.insert_after(row, "QuantizeLinear", (row, scale, middle), name=f"{stem}_codes").outputs[0]
    return codes, peak


def _write_channel_codes(
    editor: GraphEditor, node: ir.Node, weight: ir.Value, balance: ir.Value, channels_first: bool
) -> tuple[ir.Value, ir.Value]:
    """Return int8 codes [inputs, outputs] of a weight times `balance`, and its scales [outputs]; computed at load."""
    name = f"{node.name}_weight"

    def insert(op_type: str, *values: ir.Value, **attributes: int) -> ir.Value:
        return editor.insert_before(node, op_type, values, attributes, name=f"{name}_{op_type}").outputs[0]

    if channels_first:
        weight = insert("Transpose", weight)
    first = editor.add_initializer(f"{name}_first", np.array([0], np.int64))
    last = editor.add_initializer(f"{name}_last", np.array([-1], np.int64))
    weight = insert("Mul", weight, insert("Unsqueeze", balance, last))
    floor = editor.add_initializer(f"{name}_floor", np.array(_SMALLEST_PEAK, np.float32))
    highest = editor.add_initializer(f"{name}_highest", np.array(127, np.float32))
    peak = insert("Max", insert("ReduceMax", insert("Abs", weight), first, keepdims=1), floor)
    scale = insert("Div", peak, highest)
    codes = insert("Cast", insert("Round", insert("Div", weight, scale)), to=int(ir.DataType.INT8))
    return codes, insert("Squeeze", scale, first)
