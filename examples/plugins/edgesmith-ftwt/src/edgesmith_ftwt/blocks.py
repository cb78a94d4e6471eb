"""Which filters can be switched: those whose channels one convolution reads, through activations and nothing else."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "HardSwish")
POOLINGS = ("MaxPool", "AveragePool")


@dataclass(frozen=True, slots=True)
class Place:
    """One axis of a stored array that lies along the filters."""

    node: ir.Node
    port: int
    axis: int


@dataclass(frozen=True, slots=True)
class Block:
    """A convolution that makes channels, what they pass, and the convolution that reads them."""

    source: ir.Value
    """What the first convolution reads; the predictor looks at it."""
    gated: ir.Value
    """What the last convolution reads; masks are laid on it."""
    reader: ir.Node
    filters: int
    places: tuple[Place, ...]
    """Axes of weights, biases and normalizations, the reader's among them."""
    nodes: tuple[ir.Node, ...]
    """The nodes between, from the reader backwards; each makes one value with the channels."""

    @property
    def name(self) -> str:
        """The reader's name."""
        return str(self.reader.name or self.reader.outputs[0].name)

    @property
    def depthwise(self) -> tuple[ir.Node, ...]:
        """The convolutions that keep channels apart."""
        return tuple(node for node in self.nodes if node.op_type == "Conv" and _groups(node) > 1)


def find_blocks(graph: ir.Graph, skip: Collection[str] = ()) -> tuple[tuple[Block, ...], Mapping[str, str]]:
    """Return the blocks in the order of the graph, and for each other convolution why its input is left alone."""
    blocks, reasons = [], {}
    for node in graph:
        if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
            continue
        found = _Walk(node).block() if node.name not in skip else "it is named in `skip`"
        if isinstance(found, Block):
            blocks.append(found)
        else:
            reasons[str(node.name or node.outputs[0].name)] = found
    return tuple(blocks), reasons


class _Walk:
    """Goes backwards from a convolution to the one that makes its channels."""

    def __init__(self, reader: ir.Node) -> None:
        self._reader = reader
        self._places = [Place(reader, 1, 1)]
        self._nodes: list[ir.Node] = []

    def block(self) -> Block | str:
        """Return the block, or why there is none."""
        gated = self._reader.inputs[0]
        if _groups(self._reader) > 1:
            return "it reads its channels in groups"
        problem = _stored_alone(self._reader, 1)
        if gated is None or problem:
            return problem or "it reads nothing"
        value, width = gated, _shape(self._reader)[1]
        while True:
            maker = self._pass(value)
            if isinstance(maker, str):
                return maker
            source = maker.inputs[0]
            if _shape(maker)[0] != width or source is None:
                return "its channels are made in another number"
            if _groups(maker) == 1:
                return Block(source, gated, self._reader, width, tuple(self._places), tuple(self._nodes))
            if _groups(maker) != width or _shape(maker)[1] != 1:
                return "a convolution with groups makes its channels"
            value = source

    def _pass(self, value: ir.Value) -> ir.Node | str:
        """Take in pooling, an activation and a normalization, and return the convolution before them."""
        for kinds, needed in (
            (POOLINGS, False),
            (ACTIVATIONS, True),
            (("BatchNormalization",), False),
            (("Conv",), True),
        ):
            node = value.producer()
            if node is None or node.op_type not in kinds or node.domain not in ("", "ai.onnx"):
                if needed:
                    return "no convolution with an activation behind it makes its channels"
                continue
            if len(tuple(value.uses())) != 1 or value.is_graph_output():
                return f"others read {value.name} too"
            problem = self._take(node)
            if problem or node.op_type == "Conv":
                return problem or node
            value = node.inputs[0]  # type: ignore[assignment]  # an activation reads something
        return "no convolution makes its channels"

    def _take(self, node: ir.Node) -> str:
        """Take a node in and return what is against it."""
        self._nodes.append(node)
        ports = {"Conv": range(1, len(node.inputs)), "BatchNormalization": range(1, 5)}.get(node.op_type, range(0))
        for port in ports:
            if node.inputs[port] is None:
                continue
            problem = _stored_alone(node, port)
            if problem:
                return problem
            self._places.append(Place(node, port, 0))
        return ""


def _stored_alone(node: ir.Node, port: int) -> str:
    value = node.inputs[port]
    if value is None or not value.is_initializer() or value.const_value is None:
        return f"input {port} of {node.name} is computed"
    if len(tuple(value.uses())) > 1 or value.is_graph_output() or value.is_graph_input():
        return f"others read {value.name} too"
    return "" if value.dtype == ir.DataType.FLOAT else f"{value.name} is not float32"


def _groups(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1)


def _shape(node: ir.Node) -> tuple[int, ...]:
    tensor = node.inputs[1].const_value if node.inputs[1] is not None else None
    return tuple(int(size) for size in tensor.shape.numpy()) if tensor is not None else (0, 0)
