"""Walking a graph: producers, consumers, paths, and an order that depends on neither names nor node order.

Everything that looks for structure uses these walks, so they are the one place that knows which operators only
carry data along, which compute element by element, and what counts as a constant.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import constant_scalar, constant_tensor
from edgesmith.graph.shapes import Array, Shapes, bind_dimensions
from edgesmith.mapped import release

CARRYING = frozenset({"Identity", "Cast", "CastLike", "Dropout", "QuantizeLinear", "DequantizeLinear"})
"""Operators that hand on the numbers of their first input, exactly or in another precision."""

MOVING = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Split", "Gather", "Concat", "Tile"}
)
"""Operators that move numbers without computing any."""

UNARY = frozenset(
    {
        "Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "FastGelu", "Gelu", "HardSigmoid", "HardSwish",
        "LeakyRelu", "Log", "Mish", "Neg", "PRelu", "QuickGelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sign",
        "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where"})
ELEMENTWISE = UNARY | BINARY
"""Operators that compute each output element from the input elements at the same place."""

# Dimensions that symbolic axes get while structure is searched: unequal to each other and to 1, so that batch,
# sequence and broadcast axes can be told apart, and small, so that masks are cheap to evaluate.
_BATCH, _SEQUENCE = 2, 7
_SAMPLE = 256


class Dataflow:
    """Indexed view of a graph, subgraphs included. Nothing in it depends on names or on the order of nodes.

    Args:
        model: The graph; it is not changed and must not change while this view is used.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        dimensions = bind_dimensions(model, batch=_BATCH, sequence=_SEQUENCE)
        self.shapes = Shapes(model, dimensions)
        self.nodes: tuple[ir.Node, ...] = tuple(model.graph.all_nodes())
        self._index = {node: index for index, node in enumerate(self.nodes)}
        self._values: dict[str, ir.Value] = {}
        self._constants: set[ir.Value] = set()
        self._hashes: dict[ir.Value, bytes] = {}
        self._depths: dict[ir.Value, int] = {}
        for index, value in enumerate(model.graph.inputs):
            self._values[value.name or ""] = value
            self._hashes[value], self._depths[value] = _digest(b"input", str(index).encode()), 0
        self._scan(model.graph, 0)
        self._uses: dict[ir.Value, bytes] = {}
        self._scan_uses()

    def value(self, name: str) -> ir.Value:
        """Return the value with this name."""
        return self._values[name]

    def producer(self, name: str) -> ir.Node:
        """Return the node that makes the value with this name; the value must not be an input."""
        node = self._values[name].producer()
        if node is None:
            raise KeyError(name)
        return node

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether a value depends on no input: an initializer, or anything computed from initializers alone."""
        return value is None or value in self._constants or constant_tensor(value) is not None

    def order(self, value: ir.Value) -> tuple[int, bytes, bytes]:
        """Return a sorting key: distance from the inputs, then how a value is computed, then how it is used."""
        return self._depths.get(value, 0), self._hashes.get(value, b""), self._uses.get(value, b"")

    def ordered(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """Return nodes from the inputs to the outputs; the result is the same whatever the order in the file."""
        return sorted(nodes, key=lambda node: self.order(node.outputs[0]))

    def find(self, *op_types: str) -> list[ir.Node]:
        """Return all nodes of these operator types, subgraphs included, in order."""
        return self.ordered(node for node in self.nodes if node.op_type in op_types)

    def dynamic_inputs(self, node: ir.Node) -> list[ir.Value]:
        """Return the inputs of a node that are not constant, without repetition."""
        return list(dict.fromkeys(value for value in data_inputs(node) if not self.is_constant(value)))

    def number(self, value: ir.Value | None) -> float | None:
        """Return the one number that a constant consists of, in whatever shape and type it is read; None otherwise."""
        if value is None:
            return None
        node = value.producer()
        if node is None or node.op_type not in CARRYING | {"Expand"}:
            return constant_scalar(value)
        number = self.number(node.inputs[0])
        if number is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return number
        scale, zero = constant_scalar(node.inputs[1]), constant_scalar(node.inputs[2]) if len(node.inputs) > 2 else 0
        if scale is None or zero is None:
            return None
        return (number - zero) * scale if node.op_type == "DequantizeLinear" else round(number / scale) + zero

    def users(self, value: ir.Value) -> list[ir.Node]:
        """Return the nodes that read a value's numbers, in order; nodes that read its shape or type are left out."""
        return self.ordered(dict.fromkeys(node for node, _ in value.uses() if value in data_inputs(node)))

    def skip_back(self, value: ir.Value, operators: Collection[str] = CARRYING) -> ir.Value:
        """Return the value behind operators that only carry it along (or behind others, when named)."""
        node = value.producer()
        while node is not None and node.op_type in operators and node.inputs and node.inputs[0] is not None:
            value = node.inputs[0]
            node = value.producer()
        return value

    def ancestors(self, value: ir.Value, stop: Callable[[ir.Node], bool] | None = None) -> set[ir.Node]:
        """Return the nodes that a value is computed from. Shapes do not count as data.

        Args:
            value: Where to start.
            stop: The walk goes no further than nodes for which this is true; they belong to the result.
        """
        found: set[ir.Node] = set()
        pending = [value.producer()]
        while pending:
            node = pending.pop()
            if node is None or node in found:
                continue
            found.add(node)
            if stop is None or not stop(node):
                pending.extend(source.producer() for source in data_inputs(node))
        return found

    def between(self, source: ir.Value, target: ir.Value) -> list[ir.Node]:
        """Return the nodes on the paths from one value to another, in the order of execution; shapes do not count.

        Args:
            source: Where the paths begin.
            target: Where they end.
        """
        producer = source.producer()
        lowest = -1 if producer is None else self._index[producer]
        behind: set[ir.Node] = set()
        pending = [target.producer()] if target is not source else []
        while pending:
            node = pending.pop()
            if node is None or node in behind or self._index[node] <= lowest:
                continue
            behind.add(node)
            pending.extend(value.producer() for value in data_inputs(node) if value is not source)
        reached: set[ir.Value] = {source}
        path: list[ir.Node] = []
        for node in self.ordered(behind):
            if any(value in reached for value in data_inputs(node)):
                path.append(node)
                reached.update(node.outputs)
        return path

    def is_ancestor(self, source: ir.Value, target: ir.Value) -> bool:
        """Whether `target` is computed from the numbers of `source`."""
        return bool(self.between(source, target))

    def reads_input(self, value: ir.Value) -> bool:
        """Whether a value depends on the numbers in an input of the graph, and not only on their shapes."""
        inputs = set(self.model.graph.inputs)
        return value in inputs or any(
            source in inputs for node in self.ancestors(value) for source in data_inputs(node)
        )

    def trace(self, source: ir.Value, target: ir.Value, start: Array | None = None) -> Array | None:
        """Follow positions along the operators between two values and return where each element comes from.

        Operators that compute something are taken to keep elements where they are. Element `[..., i]` of the result is
        the index, on the last axis of `source`, of what stands there; -1 where something else stands.

        Args:
            source: Where positions are numbered.
            target: Where they are read, in its own shape.
            start: Positions at the source, of its shape; its last axis counted from 0 by default.
        """
        shape = self.shapes.shape(source)
        if shape is None or not shape:
            return None
        initial = np.broadcast_to(np.arange(shape[-1]), shape) if start is None else start
        traced: dict[ir.Value, Array] = {source: initial}
        for node in self.between(source, target):
            self._trace_node(node, traced)
        return traced.get(target)

    def _trace_node(self, node: ir.Node, traced: dict[ir.Value, Array]) -> None:
        if node.op_type not in MOVING:
            for value in node.inputs:
                if value in traced and traced[value].shape == self.shapes.shape(node.outputs[0]):
                    traced[node.outputs[0]] = traced[value]
                    return
            return
        arrays: dict[ir.Value, Array] = {}
        for value in node.inputs:
            if value is None:
                continue
            if value in traced:
                arrays[value] = traced[value]
                continue
            shape, known = self.shapes.shape(value), self.shapes.known(value)
            if node.op_type == "Concat" and shape is not None:
                arrays[value] = np.full(shape, -1)
            elif known is not None:
                arrays[value] = known
            else:
                return
        traced.update(self.shapes.run(node, arrays) or {})

    def _scan(self, graph: ir.Graph, depth: int) -> None:
        for node in graph:
            sources = [value for value in node.inputs if value is not None]
            own = max((self._depths.get(value, depth) for value in sources), default=depth) + 1
            content = [node.op_type.encode(), node.domain.encode(), *(self._content(value) for value in sources)]
            inside = own
            for name in sorted(node.attributes):
                attribute = node.attributes[name]
                if attribute.type == ir.AttributeType.GRAPH:
                    subgraph = attribute.as_graph()
                    self._scan_subgraph(subgraph, content, name, own)
                    inside = max([inside, *(self._depths.get(value, own) + 1 for value in subgraph.outputs)])
                elif not attribute.is_ref():
                    content.append(name.encode() + _attribute(attribute))
            read = sources[:1] if node.op_type == "CastLike" else sources
            constant = all(self.is_constant(value) for value in read) and not _has_graph(node)
            for index, value in enumerate(node.outputs):
                self._values[value.name or ""] = value
                # A constant is the same in a node as in an initializer.
                tensor = constant_tensor(value)
                self._depths[value] = inside if tensor is None else depth
                self._hashes[value] = (
                    _digest(str(index).encode(), *content) if tensor is None else _tensor_content(tensor)
                )
                if constant and not node.op_type.startswith("Random"):
                    self._constants.add(value)

    def _scan_uses(self) -> None:
        """Hash how each value is used, to tell apart what is computed alike, such as copies of one Q/DQ pair."""
        outputs = {value: str(index).encode() for index, value in enumerate(self.model.graph.outputs)}
        uses: dict[ir.Node, bytes] = {}
        for node in reversed(self.nodes):
            for value in node.outputs:
                read = sorted(str(index).encode() + uses.get(user, b"") for user, index in value.uses())
                self._uses[value] = _digest(outputs.get(value, b""), *read)
            made = (self._hashes[value] + self._uses[value] for value in node.outputs)
            uses[node] = _digest(node.op_type.encode(), *made)

    def _scan_subgraph(self, subgraph: ir.Graph, content: list[bytes], name: str, depth: int) -> None:
        for index, value in enumerate(subgraph.inputs):
            self._values[value.name or ""] = value
            self._hashes[value], self._depths[value] = _digest(*content, name.encode(), str(index).encode()), depth
        self._scan(subgraph, depth)
        content.append(name.encode())
        content.extend(self._content(value) for value in subgraph.outputs)

    def _content(self, value: ir.Value) -> bytes:
        if value not in self._hashes:
            self._values.setdefault(value.name or "", value)
            tensor = value.const_value
            self._hashes[value] = b"?" if tensor is None else _tensor_content(tensor)
        return self._hashes[value]


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs whose numbers a node reads; not those of which it reads the shape or the type only."""
    if node.op_type in ("Shape", "Size", "ConstantOfShape"):
        return []
    values = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
    return [value for value in values if value is not None]


def _has_graph(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _attribute(attribute: ir.Attr) -> bytes:
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor_content(attribute.as_tensor())
    return repr(attribute.value).encode()


def _tensor_content(tensor: ir.TensorProtocol) -> bytes:
    """Return a short hash of a tensor: type, shape and a sample, so that large weights are hardly read."""
    head = repr((tensor.dtype, tuple(tensor.shape.numpy()))).encode()
    if tensor.dtype == ir.DataType.STRING or not tensor.size:
        return _digest(head)
    flat = tensor.numpy().reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)].tobytes()
    release(tensor)
    return _digest(head, sample)


def _digest(*parts: bytes) -> bytes:
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        result.update(len(part).to_bytes(4, "little"))
        result.update(part)
    return result.digest()


def walk_back(value: ir.Value, through: Callable[[ir.Node], bool]) -> Iterator[ir.Value]:
    """Yield the values where a walk against the data flow ends, going through those nodes that `through` accepts."""
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        node = current.producer()
        if node is None or not through(node):
            yield current
        else:
            pending.extend(data_inputs(node))
