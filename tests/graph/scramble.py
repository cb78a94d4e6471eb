"""Take away from a graph everything but the computation: names, metadata, documentation and the order of nodes."""

import random
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir


def scramble(model: ir.Model, seed: int) -> tuple[ir.Model, dict[str, str]]:
    """Return a copy with random names in random order without any metadata, and the old names by the new ones."""
    generator = random.Random(seed)
    copy = model.clone()
    names: dict[str, str] = {}
    copy.metadata_props.clear()
    copy.doc_string = copy.producer_name = copy.producer_version = ""
    for graph in list(copy.graphs()):
        graph.doc_string, graph.name = None, "g"
        graph.metadata_props.clear()
        _shuffle(graph, generator)
    for item in list(_items(copy)):
        item.metadata_props.clear()
        item.doc_string = None
        new = f"{generator.getrandbits(64):016x}"
        names[new] = item.name or ""
        item.name = new
    return copy, names


def restore(data: Any, names: dict[str, str]) -> Any:
    """Put the old names back into JSON data."""
    if isinstance(data, dict):
        return {key: restore(value, names) for key, value in data.items()}
    if isinstance(data, list):
        return [restore(value, names) for value in data]
    return names.get(data, data) if isinstance(data, str) else data


def name_nodes(model: ir.Model) -> ir.Model:
    """Give every node without a name one of its own, so that structures can be compared by names."""
    for index, node in enumerate(model.graph.all_nodes()):
        node.name = node.name or f"unnamed_{index}"
    return model


def _items(model: ir.Model) -> Iterator[Any]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield node
            yield from node.outputs


def _shuffle(graph: ir.Graph, generator: random.Random) -> None:
    """Bring the nodes into another order, drawn at random among those where each follows what it reads."""
    nodes = list(graph)
    place = {value: node for node in nodes for value in node.outputs}
    waiting = {node: {place[value] for value in _read(node) if value in place} for node in nodes}
    ordered: list[ir.Node] = []
    ready = [node for node in nodes if not waiting[node]]
    followers: dict[ir.Node, list[ir.Node]] = {node: [] for node in nodes}
    for node, before in waiting.items():
        for each in before:
            followers[each].append(node)
    while ready:
        node = ready.pop(generator.randrange(len(ready)))
        ordered.append(node)
        for follower in followers[node]:
            waiting[follower].discard(node)
            if not waiting[follower]:
                ready.append(follower)
    graph.remove(nodes)
    graph.extend(ordered)


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """Yield all values that a node reads, in its subgraphs too."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _read(inner)
            yield from attribute.as_graph().outputs
