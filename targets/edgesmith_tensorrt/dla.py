"""Which nodes of a graph a deep learning accelerator (DLA) runs, which fall back to the GPU and why.

The limits are those of TensorRT's documentation, "DLA Supported Layers and Restrictions". The builder decides in the
end; this says beforehand what it must send to the GPU, and how often values change between the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.edit import constant_tensor
from edgesmith_tensorrt.dialect import Accelerator

OPEN_SIZES = "its dimensions are not all numbers"
"""Why a node of a graph with open dimensions falls back."""
_IMAGE_RANK = 4
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FREE = frozenset(("Identity", "Dropout"))
"""Operators that leave nothing to run."""
_LARGEST_CHANNELS = 8192

_Limits = Mapping[str, tuple[int, int]]
_CONVOLUTION: _Limits = {"kernel_shape": (1, 32), "strides": (1, 8), "dilations": (1, 32), "pads": (0, 31)}
_TRANSPOSED: _Limits = {"kernel_shape": (1, 32), "strides": (1, 32), "dilations": (1, 1), "pads": (0, 0)}
_POOLING: _Limits = {"kernel_shape": (1, 8), "strides": (1, 16), "pads": (0, 7)}
_LIMITS: Mapping[str, _Limits] = {
    "Conv": _CONVOLUTION,
    "ConvTranspose": _TRANSPOSED,
    "AveragePool": _POOLING,
    "MaxPool": _POOLING,
}
"""Operator to the smallest and largest value of its attributes."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the nodes of a graph run."""

    accelerated: tuple[str, ...]
    """Nodes on the DLA."""
    fallbacks: Mapping[str, tuple[str, ...]]
    """Reason to the nodes that run on the GPU because of it."""
    loadables: int
    """Parts into which the network on the DLA falls."""
    transitions: int
    """Values that cross between DLA and GPU; each is reformatted and waited for."""


def place(graph: ir.Graph, dla: Accelerator) -> Placement:
    """Return which nodes of `graph` run on the DLA.

    Args:
        graph: The main graph, with types and shapes.
        dla: What the accelerator takes.
    """
    nodes = [node for node in graph if _computes(node) and not _converts_a_port(node)]
    reasons = {node: _reason(node, dla) for node in nodes}
    fallbacks: dict[str, list[str]] = {}
    for node, reason in reasons.items():
        if reason:
            fallbacks.setdefault(reason, []).append(node.name or str(node.outputs[0].name))
    accelerated = [node for node in nodes if not reasons[node]]
    return Placement(
        tuple(node.name or str(node.outputs[0].name) for node in accelerated),
        {reason: tuple(names) for reason, names in fallbacks.items()},
        _count_parts(nodes, reasons),
        sum(_crosses(value, reasons) for node in nodes for value in node.outputs),
    )


def _computes(node: ir.Node) -> bool:
    """Return whether a node works on numbers at run time: constants are folded, and shapes are the host's."""
    if node.op_type in _FREE or not any(output.dtype in _FLOATS or output.dtype is None for output in node.outputs):
        return False
    return any(value is not None and constant_tensor(value) is None and not _is_folded(value) for value in node.inputs)


def _converts_a_port(node: ir.Node) -> bool:
    """Return whether a node only gives an input or output of the graph its type, as lowering to 16 bits does."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type != "Cast" or source is None or source.dtype not in _FLOATS:
        return False
    return source.is_graph_input() or node.outputs[0].is_graph_output()


def _is_folded(value: ir.Value) -> bool:
    """Return whether a value is computed from constants alone, as a dequantized weight is."""
    producer = value.producer()
    if producer is None:
        return value.const_value is not None
    return all(each is None or constant_tensor(each) is not None for each in producer.inputs)


def _reason(node: ir.Node, dla: Accelerator) -> str:
    """Return why the DLA does not run a node; nothing if it does."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return "Q/DQ pairs need TensorRT 11.4.1 there; in TensorRT 10 the DLA takes float16 graphs"
    if node.op_type not in dla.layers or node.domain != "":
        return f"the DLA has no {node.op_type}"
    return next(_broken_limits(node, dla), "")


def _broken_limits(node: ir.Node, dla: Accelerator) -> Iterator[str]:
    for value in (node.inputs[0], node.outputs[0]):
        sizes = _sizes(value)
        if sizes is None:
            yield OPEN_SIZES
        elif len(sizes) != _IMAGE_RANK:
            yield f"values have {len(sizes)} dimensions, and the DLA takes images of 4"
        elif sizes[0] > dla.largest_batch or max(sizes[1:]) > dla.largest_dimension:
            yield f"a size is beyond {dla.largest_batch} in the batch or {dla.largest_dimension} elsewhere"
    limits = _LIMITS.get(node.op_type, {})
    for name, (low, high) in limits.items():
        found = [int(size) for size in node.attributes.get_ints(name, ())]
        if name == "kernel_shape" and not found:
            found = list(_sizes(node.inputs[1]) or ())[2:] if len(node.inputs) > 1 else []
        if any(not low <= size <= high for size in found):
            yield f"{name} {'x'.join(map(str, found))} is outside {low} to {high}"
    yield from _special_limits(node)


def _special_limits(node: ir.Node) -> Iterator[str]:
    sizes = _sizes(node.inputs[0]) or ()
    group = node.attributes.get_int("group", 1)
    if node.op_type in ("Conv", "ConvTranspose"):
        if constant_tensor(node.inputs[1]) is None:
            yield "its weights are no constants"
        if node.op_type == "ConvTranspose" and group != 1:
            yield "transposed convolutions in groups"
        if any(size > _LARGEST_CHANNELS for size in (_sizes(node.inputs[1]) or ())[:2]):
            yield f"more than {_LARGEST_CHANNELS} channels"
    if node.op_type == "GlobalAveragePool" and any(size > _POOLING["kernel_shape"][1] for size in sizes[2:]):
        yield f"its window {'x'.join(map(str, sizes[2:]))} is larger than 8"
    if node.op_type == "Concat" and node.attributes.get_int("axis", 1) % max(len(sizes), 1) != 1:
        yield "it joins along another axis than the channels"
    if node.op_type == "PRelu" and constant_tensor(node.inputs[1]) is None:
        yield "its slope is no constant"
    if node.op_type == "LRN" and node.attributes.get_int("size", 0) not in (3, 5, 7, 9):
        yield "its window is none of 3, 5, 7 and 9"


def _sizes(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of a value if it is all numbers."""
    if value is None or value.shape is None:
        return None
    sizes = tuple(size for size in value.shape if isinstance(size, int))
    return sizes if len(sizes) == len(value.shape) else None


def _crosses(value: ir.Value, reasons: Mapping[ir.Node, str]) -> bool:
    """Return whether a value is made on one of the two processors and read on the other."""
    producer = value.producer()
    if producer is None or producer not in reasons:
        return False
    return any(bool(reasons[reader]) != bool(reasons[producer]) for reader in _readers(value) if reader in reasons)


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that read a value, across those that leave nothing to run."""
    for node, _ in value.uses():
        if node.op_type in _FREE:
            yield from _readers(node.outputs[0])
        else:
            yield node


def _count_parts(nodes: Sequence[ir.Node], reasons: Mapping[ir.Node, str]) -> int:
    """Return the number of connected parts on the DLA, where nothing on the GPU may lie inside a part.

    The depth of a node counts the changes of processor on the way to it; nodes of one part have one depth.
    """
    depth: dict[ir.Node, int] = {}
    neighbours: dict[ir.Node, list[ir.Node]] = {node: [] for node in nodes if not reasons[node]}
    for node in nodes:
        sources = [source for source in _sources(node) if source in depth]
        changes = [depth[source] + (bool(reasons[source]) != bool(reasons[node])) for source in sources]
        depth[node] = max(changes, default=0)
        for source in sources:
            if node in neighbours and source in neighbours and depth[source] == depth[node]:
                neighbours[node].append(source)
                neighbours[source].append(node)
    parts = 0
    while neighbours:
        parts += 1
        pending = [next(iter(neighbours))]
        while pending:
            pending.extend(neighbours.pop(pending.pop(), ()))
    return parts


def _sources(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type in _FREE:
            yield from _sources(producer)
        elif producer is not None:
            yield producer
