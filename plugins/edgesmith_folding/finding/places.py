"""Blocks with the nodes that belong to them alone, and why one cannot go."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.execution.segments import read_values
from edgesmith.graph.cache import Cache, caches_of
from edgesmith.graph.dataflow import data_inputs
from edgesmith.graph.residual import Block
from edgesmith.graph.structure import Structure
from edgesmith_folding.finding.caches import caches_within, obstacle_of


@dataclass(frozen=True, slots=True)
class Place:
    """A block where it stands."""

    number: int
    """Counted from 0 through the whole graph."""
    stream: int
    """Number of its stream."""
    from_start: int
    """Blocks of the stream before it."""
    from_end: int
    """Blocks of the stream behind it."""
    block: Block
    nodes: frozenset[ir.Node]
    """What is computed for this block alone, from its input to its output."""
    obstacle: str
    """Why it cannot be left out; empty where it can."""
    caches: tuple[Cache, ...] = ()
    """Caches of its keys and values, which go with it."""

    @property
    def convolutional(self) -> bool:
        """Whether channels are the second axis of the stream, not the last."""
        return bool(self.block.convolutions) and not self.block.attentions and not self.block.mlps


def find_places(model: ir.Model, structure: Structure) -> tuple[Place, ...]:
    """Return all blocks of the graph's streams in their order.

    Args:
        model: The graph that the structure was found in.
        structure: Its structure.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    order = {node: index for index, node in enumerate(model.graph)}
    reads = {node: read_values(node) for node in order}
    readers: dict[ir.Value, set[ir.Node]] = {}
    for node, read in reads.items():
        for value in read:
            readers.setdefault(value, set()).add(node)
    taken: set[ir.Node] = set()
    found: list[Place] = []
    caches = caches_of(model.graph)
    no_caches: tuple[Cache, ...] = ()
    for number, stream in enumerate(structure.streams):
        for index, block in enumerate(stream.blocks):
            source, target = values.get(block.input), values.get(block.output)
            behind = len(stream.blocks) - 1 - index
            if source is None or target is None:
                nodes, obstacle, own = frozenset[ir.Node](), "it stands in a subgraph", no_caches
            else:
                nodes = _own_nodes(order, reads, readers, source, target)
                own = caches_within(caches, nodes)
                obstacle = _obstacle(source, target, nodes, taken, readers, own)
                obstacle = obstacle or next(filter(None, (obstacle_of(each, nodes, caches) for each in own)), "")
            taken |= nodes
            found.append(Place(len(found), number, index, behind, block, nodes, obstacle, own))
    return tuple(found)


def runs(numbers: Iterable[int], places: Mapping[int, Place]) -> tuple[tuple[Place, ...], ...]:
    """Return blocks in runs: each block reads what the one before it in the run gives.

    Args:
        numbers: Numbers of blocks.
        places: Blocks by number.
    """
    found: list[list[Place]] = []
    for place in (places[number] for number in sorted(numbers)):
        before = found[-1][-1] if found else None
        if before is not None and before.number + 1 == place.number and before.block.output == place.block.input:
            found[-1].append(place)
        else:
            found.append([place])
    return tuple(tuple(run) for run in found)


def _own_nodes(
    order: Mapping[ir.Node, int],
    reads: Mapping[ir.Node, set[ir.Value]],
    readers: Mapping[ir.Value, set[ir.Node]],
    source: ir.Value,
    target: ir.Value,
) -> frozenset[ir.Node]:
    """Return the nodes between two values, with those that only compute shapes for them."""
    producer, last = source.producer(), target.producer()
    if last is None:
        return frozenset()
    start, stop = -1 if producer is None else order[producer], order[last]
    between = [node for node, index in order.items() if start < index <= stop]
    by_data, by_any = {source}, {source}
    for node in between:
        if by_data & {*data_inputs(node), *(reads[node] - set(node.inputs))}:
            by_data.update(node.outputs)
        if reads[node] & by_any:
            by_any.update(node.outputs)
    own: set[ir.Node] = set()
    for node in reversed(between):
        users = {user for output in node.outputs for user in readers.get(output, ())}
        on_path = by_data.issuperset(node.outputs) and users & own
        only_shapes = users and by_any.issuperset(node.outputs) and users <= own
        if node is last or on_path or only_shapes:
            own.add(node)
    return frozenset(own) if target in by_data else frozenset()


def _obstacle(
    source: ir.Value,
    target: ir.Value,
    nodes: frozenset[ir.Node],
    taken: set[ir.Node],
    readers: Mapping[ir.Value, set[ir.Node]],
    caches: tuple[Cache, ...],
) -> str:
    handed_out = {cache.output for cache in caches}
    allowed = nodes.union(*(cache.behind for cache in caches))
    if not nodes or nodes & taken:
        return "its nodes cannot be told from those of another block"
    if source.dtype is not None and target.dtype is not None and source.dtype != target.dtype:
        return f"it turns {source.dtype} into {target.dtype}"
    if source.shape is not None and target.shape is not None and source.shape.rank() != target.shape.rank():
        return "its output has another rank than its input"
    for node in nodes:
        for value in node.outputs:
            if value is target:
                continue
            if value.is_graph_output() and value not in handed_out:
                return f"its inner value {value.name} is an output of the graph, which must keep its outputs"
            if not readers.get(value, set()) <= allowed:
                return f"its inner value {value.name} is read outside of it"
    return ""
