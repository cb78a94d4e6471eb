"""Finds constant weights with every node that reads them, so that each is changed once; says why others are not."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.kept import kept
from edgesmith.graph.node_names import node_name
from edgesmith.graph.quantized import already_quantized

WEIGHT_INPUT = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}
"""Operators that read weights, and which of their inputs is one."""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


Reason = Callable[[str], str]
Skip = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class WeightSite:
    """One constant weight with all nodes that read it."""

    weight: ir.Value
    """The stored constant, float32 or float16: an initializer, or the output of a Constant node."""
    readers: tuple[ir.Node, ...]
    """Products and convolutions that multiply with it, in graph order."""
    gathers: tuple[ir.Node, ...]
    """Gather nodes that select its rows, as embeddings do, in graph order."""
    output_axis: int
    """Dimension of output channels; of the entries of a table."""
    input_axis: int
    """Dimension that products sum over; the width of a table."""
    transposes: tuple[ir.Node, ...] = ()
    """Transpose nodes between the weight and some of its readers, as heads have that share the embedding table."""

    @property
    def name(self) -> str:
        """The name of the weight, or of its first reader where it has none."""
        return self.weight.name or node_name(self.nodes[0])

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All readers: products first, then gathers."""
        return (*self.readers, *self.gathers)

    @property
    def transposed(self) -> bool:
        """Whether some reader reads the weight through a Transpose."""
        return bool(self.transposes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored weight."""
        tensor = constant_tensor(self.weight)
        return () if tensor is None else tuple(int(size) for size in tensor.shape.numpy())

    @property
    def is_matrix(self) -> bool:
        """Whether one row per output channel is one run along `input_axis`, so that blocks along it can be stored."""
        return all(size == 1 for axis, size in enumerate(self.shape) if axis not in (self.output_axis, self.input_axis))

    def rows(self) -> NDArray[np.float32] | NDArray[np.float16]:
        """Return the weight as [outputs, inputs of one output] in its own type; of a matrix, a view and no copy."""
        tensor = constant_tensor(self.weight)
        if tensor is None:  # sites hold constants only
            raise ValueError(self.name)
        array = np.moveaxis(tensor.numpy(), self.output_axis, 0)
        return array.reshape(array.shape[0], -1)


@dataclass(frozen=True, slots=True)
class _Use:
    node: ir.Node
    root: ir.Value
    path: tuple[ir.Node, ...]
    output_axis: int
    input_axis: int


def find_weight_sites(
    graph: ir.Graph, unselected: Reason, skip: Skip, *, operators: Collection[str] = tuple(WEIGHT_INPUT)
) -> tuple[WeightSite, ...]:
    """Return the weights that a method can change, in graph order of their first reader.

    A weight is taken only if all its readers are: what is shared is changed once or not at all. Every node that
    reads a weight and is left alone is handed to `skip` with its reason.

    Args:
        graph: The main graph; nodes in bodies of control flow are left alone.
        unselected: Returns why the node of a name may not be touched, or an empty string (`Selection.obstacle`).
        skip: Receives the name of a node and the reason it is left alone (`Notes.skip`).
        operators: Members of `WEIGHT_INPUT` to take.
    """
    uses: dict[ir.Value, list[_Use]] = {}
    for node in graph:
        if node.op_type not in WEIGHT_INPUT or node.domain != "":
            continue
        use = _use(node, skip)
        if use is not None:
            uses.setdefault(use.root, []).append(use)
    for node in (node for body in graph.subgraphs() for node in body):
        if node.op_type in WEIGHT_INPUT and node.op_type != "Gather" and node.domain == "":
            skip(node_name(node), "stands in the body of a control-flow operator")
    sites = []
    for root, each in uses.items():
        reason = _obstacle(root, each, unselected, operators)
        if reason:
            for use in each:
                skip(node_name(use.node), reason)
        else:
            sites.append(_site(root, each))
    return tuple(sites)


def weight_readers(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    """Return each constant weight with the nodes of the main graph that read it, whatever its form.

    `find_weight_sites` leaves out weights that it cannot describe as rows and columns; here all are.
    """
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        index = WEIGHT_INPUT.get(node.op_type) if node.domain == "" else None
        value = node.inputs[index] if index is not None and len(node.inputs) > index else None
        while value is not None and (producer := value.producer()) is not None:
            if producer.op_type not in ("Identity", "Transpose"):
                break
            value = producer.inputs[0]
        if value is not None and constant_tensor(value) is not None:
            found.setdefault(value, []).append(node)
    return found


def leave_alone(site: WeightSite, reason: str, skip: Skip) -> None:
    """Say for every node that reads a weight why it stays as it is."""
    for node in site.nodes:
        skip(node_name(node), reason)


def _site(root: ir.Value, uses: list[_Use]) -> WeightSite:
    transposes = dict.fromkeys(node for use in uses for node in use.path if node.op_type == "Transpose")
    return WeightSite(
        weight=root,
        readers=tuple(use.node for use in uses if use.node.op_type != "Gather"),
        gathers=tuple(use.node for use in uses if use.node.op_type == "Gather"),
        output_axis=uses[0].output_axis,
        input_axis=uses[0].input_axis,
        transposes=tuple(transposes),
    )


def _use(node: ir.Node, skip: Skip) -> _Use | None:
    """Return how a node reads a weight, or None, with a note where it is a product."""
    index = WEIGHT_INPUT[node.op_type]
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        return None
    root, path = _root(value)
    tensor = constant_tensor(root)
    gather = node.op_type == "Gather"
    if tensor is None:
        if not gather:
            skip(node_name(node), _no_constant(node))
        return None
    shape = tuple(tensor.shape.numpy())
    if gather and (len(shape) != 2 or not tensor.dtype.is_floating_point()):
        return None  # selects from a list of numbers, as shape arithmetic does
    reason = _form_obstacle(node, tensor)
    if reason:
        skip(node_name(node), reason)
        return None
    channels_first = gather or node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0))
    if sum(each.op_type == "Transpose" for each in path) % 2:
        channels_first = not channels_first
    return _Use(node, root, path, *((0, 1) if channels_first else (1, 0)))


def _root(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """Return the value behind Identity and 2-D Transpose nodes, and these nodes."""
    path: list[ir.Node] = []
    node = value.producer()
    while node is not None and _is_passing(node) and node.inputs[0] is not None:
        path.append(node)
        value = node.inputs[0]
        node = value.producer()
    return value, tuple(path)


def _is_passing(node: ir.Node) -> bool:
    swaps = node.op_type == "Transpose" and list(node.attributes.get_ints("perm", (1, 0))) == [1, 0]
    return node.domain == "" and (swaps or node.op_type == "Identity")


def _no_constant(node: ir.Node) -> str:
    quantized = already_quantized(node)
    if quantized:
        return quantized
    first = node.inputs[0]
    if first is not None and constant_tensor(first) is not None:
        return "its first input is constant; weights must be the second"
    return "both inputs are activations"


def _form_obstacle(node: ir.Node, tensor: ir.TensorProtocol) -> str:
    rank = len(tensor.shape)
    if tensor.dtype not in _FLOATS:
        return f"its weight is {tensor.dtype.name}, not FLOAT or FLOAT16"
    if 0 in tensor.shape.numpy():
        return "its weight is empty"
    if node.op_type in ("MatMul", "Gemm") and rank != 2:
        return f"its weight has {rank} dimensions, not 2"
    if node.op_type == "Conv" and rank < 3:
        return "its weight has no window"
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) % rank != 0:
        return "it selects along another dimension than the first"
    return ""


def _obstacle(root: ir.Value, uses: list[_Use], unselected: Reason, operators: Collection[str]) -> str:
    """Return why a weight stays as it is, or an empty string."""
    for use in uses:
        name = node_name(use.node)
        if use.node.op_type not in operators:
            reason = f"{use.node.op_type} is not among the option operators"
        else:
            reason = unselected(name) or kept(use.node)
        if reason:
            return reason if len(uses) == 1 else f"its weight is shared with {name}: {reason}"
    if len({use.output_axis for use in uses}) > 1:
        return "its weight is read in both orientations"
    known = {use.node for use in uses} | {node for use in uses for node in use.path}
    for value in _carriers(root, uses):
        if value.is_graph_output():
            return "its weight is an output of the graph"
        stranger = next((use.node for use in value.uses() if use.node not in known), None)
        if stranger is not None:
            return f"its weight is also read by {node_name(stranger)} ({stranger.op_type})"
    return ""


def _carriers(root: ir.Value, uses: list[_Use]) -> Iterator[ir.Value]:
    yield root
    for node in dict.fromkeys(node for use in uses for node in use.path):
        yield node.outputs[0]
