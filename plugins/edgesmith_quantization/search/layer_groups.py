"""Groups of layers that must share one format, since they share an input or a weight."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.node_names import node_name
from edgesmith_quantization.finding.disjoint_sets import DisjointSets

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Nodes that get one format together."""

    nodes: tuple[str, ...]
    """Names of the nodes, in graph order."""
    kind: str
    """What groups of equal speed have in common: operators and shapes of the weights, such as "MatMul 384x1536"."""
    macs: int
    """Multiply-accumulate operations of one inference."""

    @property
    def name(self) -> str:
        """A short name to show."""
        return self.nodes[0] if len(self.nodes) == 1 else f"{self.nodes[0]} and {len(self.nodes) - 1} more"


def group_layers(graph: ir.Graph, names: Iterable[str], macs: Mapping[str, int]) -> tuple[LayerGroup, ...]:
    """Return the named nodes in groups, in graph order.

    Products of one activation share its quantized form, and nodes of one weight share its codes; so do nodes of
    equal name, which the options of a method cannot tell apart.

    Args:
        graph: The graph.
        names: Names of nodes that could be quantized.
        macs: Multiply-accumulate operations by node name; missing ones count 0.
    """
    wanted = set(names)
    nodes = [node for node in graph.all_nodes() if node_name(node) in wanted]
    sets = DisjointSets[int]()
    owners: dict[object, int] = {}
    for index, node in enumerate(nodes):
        for key in _shared(node):
            sets.join(owners.setdefault(key, index), index)
    members: dict[int, list[ir.Node]] = {}
    for index, node in enumerate(nodes):
        members.setdefault(sets.root(index), []).append(node)
    return tuple(_group(each, macs) for each in members.values())


def merge_groups(groups: Sequence[LayerGroup], most: int) -> tuple[LayerGroup, ...]:
    """Return about `most` groups: neighbours of one kind are merged, at least one group of each kind stays.

    For models with so many layers that measuring each alone would take too long.
    """
    if len(groups) <= most:
        return tuple(groups)
    kinds: dict[str, list[LayerGroup]] = {}
    for group in groups:
        kinds.setdefault(group.kind, []).append(group)
    merged = []
    for kind, members in kinds.items():
        parts = max(1, len(members) * most // len(groups))
        for part in range(parts):
            chosen = members[part * len(members) // parts : (part + 1) * len(members) // parts]
            nodes = tuple(node for group in chosen for node in group.nodes)
            merged.append(LayerGroup(nodes, kind, sum(group.macs for group in chosen)))
    return tuple(merged)


def _shared(node: ir.Node) -> Iterator[object]:
    """Yield what ties a node to others: its name, its weights, and the activations that its product reads."""
    yield node_name(node)
    for value in node.inputs[:2]:
        source = _behind_transpose(value)
        if source is None:
            continue
        tensor = constant_tensor(source)
        if (tensor is not None and len(tensor.shape) >= 2) or (tensor is None and node.op_type in _PRODUCTS):
            yield source


def _behind_transpose(value: ir.Value | None) -> ir.Value | None:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "Transpose" or constant_tensor(producer.inputs[0]) is None:
        return value
    return producer.inputs[0]


def _group(nodes: Sequence[ir.Node], macs: Mapping[str, int]) -> LayerGroup:
    names = tuple(dict.fromkeys(node_name(node) for node in nodes))
    kinds = sorted({_kind(node) for node in nodes})
    return LayerGroup(names, " + ".join(kinds), sum(macs.get(name, 0) for name in names))


def _kind(node: ir.Node) -> str:
    weights = (constant_tensor(_behind_transpose(value)) for value in node.inputs[:2])
    shape = next((tuple(weight.shape.numpy()) for weight in weights if weight is not None), ())
    if node.op_type not in ("Conv", "ConvTranspose"):
        return f"{node.op_type} {'x'.join(map(str, shape))}".strip()
    # Convolutions of one network differ in width at every stage, so that few would be alike.
    depthwise = " depthwise" if node.attributes.get_int("group", 1) > 1 and shape[1:2] == (1,) else ""
    return f"{node.op_type} {'x'.join(map(str, shape[2:]))}{depthwise}"
