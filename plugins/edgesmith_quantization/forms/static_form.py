"""Writes static quantization as QuantizeLinear/DequantizeLinear pairs around products (the Q/DQ form)."""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor
from edgesmith.host.dialect import Dialect
from edgesmith_quantization.finding.candidates import Candidate, bounded_output
from edgesmith_quantization.forms.weights import WeightStore

# These pass values on unchanged or choose among them, so input and output can share one scale.
_RANGE_PRESERVING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
# The further inputs of these are sizes and axes.
_ONE_ACTIVATION = ("Reshape", "Squeeze", "Unsqueeze", "ReduceMean")


@dataclass(frozen=True, slots=True)
class ActivationCode:
    """Scale and zero point of one activation."""

    scale: np.float32
    zero_point: NDArray[Any]
    """Rank 0, in the stored dtype."""
    count: int = 0
    """How many values of the activation were seen with calibration data."""
    mean_square: float = 0.0
    """Of these; 0 where none was seen."""

    @property
    def limits(self) -> tuple[np.float32, np.float32]:
        """The smallest and largest value that has a code."""
        ends = np.iinfo(self.zero_point.dtype)
        zero_point = int(self.zero_point)
        return self.scale * np.float32(ends.min - zero_point), self.scale * np.float32(ends.max - zero_point)


@dataclass(frozen=True, slots=True)
class Placement:
    """Which values get a Q/DQ pair, in graph order, and who reads the result."""

    values: tuple[ir.Value, ...]
    forced: frozenset[ir.Value]
    """Values that every reader must take in quantized form, because their producer only then runs in integers."""
    carried: tuple[ir.Node, ...]
    """Nodes between quantized products that run in integers along with them."""
    attention: tuple[ir.Node, ...] = ()
    """Products of two activations, both of which are quantized."""

    def range_source(self, value: ir.Value) -> ir.Value:
        """Return the quantized value whose scale `value` shares; often `value` itself."""
        producer = value.producer()
        while producer is not None and producer.op_type in _RANGE_PRESERVING and producer.inputs[0] in self.values:
            value = producer.inputs[0]
            producer = value.producer()
        return value


def place(
    graph: ir.Graph, candidates: Sequence[Candidate], dialect: Dialect, attention: Sequence[ir.Node] = ()
) -> Placement:
    """Return where Q/DQ pairs go: inputs of products, and outputs where the dialect asks for them.

    Args:
        graph: The float graph.
        candidates: Products with constant weights.
        dialect: The form of the target.
        attention: Products of two activations.
    """
    products = {candidate.node for candidate in candidates} | set(attention)
    inputs = {candidate.activation for candidate in candidates}
    inputs |= {value for node in attention for value in node.inputs if value is not None}
    forced = frozenset(c.bounded_output for c in candidates if c.node.op_type in dialect.quantize_outputs)
    wanted = inputs | forced
    wanted |= _between(graph, dialect, wanted, products)
    ordered = [value for value in graph.inputs if value in wanted]
    ordered += [value for node in graph for value in node.outputs if value in wanted]
    carried = tuple(node for node in graph if _stays_in_codes(node, _carried_types(dialect), wanted))
    return Placement(tuple(ordered), forced, carried, tuple(attention))


def _between(graph: ir.Graph, dialect: Dialect, wanted: Set[ir.Value], products: Set[ir.Node]) -> frozenset[ir.Value]:
    """Return the values beside `wanted` that lie between quantized ones, computed and read by carried operators only.

    All outputs of such operators are candidates. One falls out when its operator reads, or it is read by, something
    in float; that may put others out, until nothing changes.
    """
    types = _carried_types(dialect)
    makers = {bounded_output(node): node for node in graph if node.op_type in types}
    between = makers.keys() - set(graph.outputs) - wanted
    while True:
        known = wanted | between
        kept = {
            value
            for value in between
            if _stays_in_codes(makers[value], types, known)
            and all(node in products or _stays_in_codes(node, types, known) for node, _ in value.uses())
        }
        if kept == between:
            return frozenset(between)
        between = kept


def _carried_types(dialect: Dialect) -> frozenset[str]:
    return dialect.carried | frozenset(_RANGE_PRESERVING)


def _stays_in_codes(node: ir.Node, types: Set[str], quantized: Set[ir.Value]) -> bool:
    """Return whether a node is of one of the types, and all activations that it reads and makes are quantized."""
    if node.op_type not in types or node.domain != "":
        return False
    read = [value for value in node.inputs if value is not None]
    if node.op_type in _ONE_ACTIVATION:
        read = read[:1]
    return all(value in quantized for value in (*read, bounded_output(node)))


def write_static(
    editor: GraphEditor,
    candidates: Sequence[Candidate],
    placement: Placement,
    codes: Mapping[ir.Value, ActivationCode],
    store: WeightStore,
    dialect: Dialect,
) -> None:
    """Put Q/DQ pairs on activations and replace weights by codes behind a DequantizeLinear. Edits the graph."""
    readers = {candidate.node for candidate in candidates} | {*placement.carried, *placement.attention}
    scales = {candidate.node: codes[candidate.activation].scale for candidate in candidates}
    for value in placement.values:
        quantize_activation(editor, value, codes[value], None if value in placement.forced else readers)
    dequantized: dict[ir.Value, ir.Value] = {}
    for candidate in candidates:
        node, weight = candidate.node, store.weight(candidate, transpose=candidate.transposed)
        if weight.codes not in dequantized:
            dequantize = editor.insert_before(
                node,
                "DequantizeLinear",
                (weight.codes, weight.scale, weight.zero_point),
                None if weight.axis is None else {"axis": weight.axis},
                name=f"{weight.codes.name}_dequantize",
            )
            dequantized[weight.codes] = _typed(dequantize.outputs[0], weight.codes.shape)
        node.replace_input_with(1, dequantized[weight.codes])
        if dialect.bias == "int32" and candidate.bias is not None:
            bias = store.bias(candidate, weight, scales[node])
            node.replace_input_with(2, _typed(bias, candidate.bias.shape) if bias is not None else None)


def quantize_activation(
    editor: GraphEditor, value: ir.Value, code: ActivationCode, readers: Collection[ir.Node] | None
) -> ir.Node:
    """Insert a Q/DQ pair on `value` for `readers`, or for everybody when None; return its QuantizeLinear.

    The scale has the type of the value.
    """
    kind = value.type or ir.TensorType(ir.DataType.FLOAT)
    scale = editor.add_initializer(f"{value.name}_scale", np.asarray(code.scale, kind.dtype.numpy()))
    zero_point = editor.add_initializer(f"{value.name}_zero_point", code.zero_point)
    quantize = editor.insert_after(value, "QuantizeLinear", (value, scale, zero_point), name=f"{value.name}_quantize")
    quantized = quantize.outputs[0]
    quantized.shape, quantized.type = value.shape, ir.TensorType(ir.DataType.from_numpy(code.zero_point.dtype))
    dequantize = editor.insert_after(
        quantized, "DequantizeLinear", (quantized, scale, zero_point), name=f"{value.name}_dequantize"
    )
    result = dequantize.outputs[0]
    result.shape, result.type = value.shape, kind
    if readers is None:
        editor.replace_uses(value, result, keep=(quantize,))
        return quantize
    for node, index in tuple(value.uses()):
        if node in readers:
            node.replace_input_with(index, result)
    return quantize


def _typed(value: ir.Value, shape: ir.Shape | None) -> ir.Value:
    value.shape, value.type = shape, ir.TensorType(ir.DataType.FLOAT)
    return value
