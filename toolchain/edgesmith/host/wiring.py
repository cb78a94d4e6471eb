"""Whether every value that a graph reads is there when it is read. Asked first: a graph that fails cannot be copied."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def find_loose_end(graph: "ir.Graph | ir.Function") -> str | None:
    """Return what is wrong with the wiring of a graph and the graphs inside it, or None for a sound one.

    A node may read inputs and initializers of its graph, outputs of earlier nodes, and what a node around it may read.
    """
    return _loose_end(graph, (), ())


def _loose_end(
    graph: "ir.Graph | ir.Function", outside: Collection["ir.Value"], around: "tuple[ir.Graph | ir.Function, ...]"
) -> str | None:
    import onnx_ir as ir

    graphs = (*around, graph)
    initializers = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
    visible = {*outside, *graph.inputs, *initializers}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in visible:
                return f"node {_name(node)} reads {_name(value)}, {_absence(value, graphs, visible)}"
        for inner in _graphs_inside(node):
            problem = _loose_end(inner, visible, graphs)
            if problem is not None:
                return f"{problem} (inside node {_name(node)})"
        visible.update(node.outputs)
    for value in graph.outputs:
        if value not in visible:
            return f"the output {_name(value)} is a value {_absence(value, graphs, visible)}"
    return None


def _absence(value: "ir.Value", graphs: "tuple[ir.Graph | ir.Function, ...]", visible: Collection["ir.Value"]) -> str:
    producer = value.producer()
    if producer is not None and any(producer.graph is graph for graph in graphs):
        return f"which node {_name(producer)} produces only later"
    if any(other.name == value.name for other in visible):
        return "which belongs to another graph and only shares its name with a value of this one"
    return "which no node or input produces"


def _graphs_inside(node: "ir.Node") -> Iterator["ir.Graph"]:
    import onnx_ir as ir

    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type is ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _name(part: "ir.Node | ir.Value") -> str:
    return repr(part.name) if part.name else "(unnamed)"
