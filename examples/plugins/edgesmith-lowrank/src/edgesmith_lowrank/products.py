"""Which products of a graph can be factorised: those of activations with a stored matrix that nothing else reads."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True)
class Weight:
    """A stored matrix with all products that read it."""

    value: ir.Value
    nodes: tuple[ir.Node, ...]
    transposed: bool
    """Whether the matrix is stored as [out, in], which Gemm can read."""

    @property
    def size(self) -> tuple[int, int]:
        """Number of inputs and of outputs of the layer."""
        first, second = (int(size) for size in self.value.const_value.shape.numpy())  # type: ignore[union-attr]
        return (second, first) if self.transposed else (first, second)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that the matrix multiplies."""
        return tuple(dict.fromkeys(str(node.inputs[0].name) for node in self.nodes if node.inputs[0] is not None))


def find_weights(graph: ir.Graph, skip: Collection[str] = ()) -> tuple[tuple[Weight, ...], Mapping[str, str]]:
    """Return the matrices to factorise, in the order of the graph, and for each other product why it is left alone."""
    weights: dict[str, Weight] = {}
    reasons: dict[str, str] = {}
    for node in graph:
        if node.domain or node.op_type not in ("MatMul", "Gemm"):
            continue
        value = node.inputs[1]
        reason = _obstacle(graph, node, skip)
        if reason:
            reasons[str(node.name)] = reason
        elif value is not None and value.name not in weights:
            readers = tuple(dict.fromkeys(reader for reader, _ in value.uses()))
            weights[str(value.name)] = Weight(value, readers, _is_transposed(node))
    return tuple(weights.values()), reasons


def _obstacle(graph: ir.Graph, node: ir.Node, skip: Collection[str]) -> str:
    """Return why a product is left alone, or an empty string. What shares a matrix shares the answer."""
    value = node.inputs[1]
    if value is None or not value.is_initializer() or value.const_value is None:
        return "it multiplies two values that are computed"
    if value.is_graph_input() or value.is_graph_output():
        return "its matrix is an input or output of the graph"
    if value.const_value.dtype not in FLOATS or len(value.const_value.shape) != 2:
        return f"its matrix is {value.const_value.dtype} {value.const_value.shape}, not two-dimensional and float"
    for reader, position in value.uses():
        if reader.name in skip:
            return "it is named in `skip`" if reader is node else f"its matrix is shared with {reader.name}, in `skip`"
        if reader.graph is not graph or reader.op_type not in ("MatMul", "Gemm") or position != 1:
            return f"its matrix is also read by {reader.name} ({reader.op_type}), and would have to be kept"
        if _is_transposed(reader) != _is_transposed(node):
            return f"{reader.name} reads the same matrix transposed"
        data = reader.inputs[0]
        if data is None or data.is_initializer() or _attribute(reader, "transA"):
            return "what it multiplies is constant or transposed"
    return ""


def _is_transposed(node: ir.Node) -> bool:
    return bool(_attribute(node, "transB"))


def _attribute(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0
