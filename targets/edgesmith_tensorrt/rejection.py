"""What to tell the user where NVIDIA's compiler rejects a graph, also where it names no node itself."""

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.errors import TargetError
from edgesmith_tensorrt.gate import GateResult

_RECURRENT = ("LSTM", "GRU", "RNN")


def rejected(device: str, answer: GateResult, graph: ir.Graph) -> TargetError:
    """Return the error for a graph that the compiler rejects.

    TensorRT for RTX ends with an internal error without a node for a recurrent operator in a branch of an If (seen
    with 1.7.1: LSTM, GRU, and RNN in some graphs; the same operators outside, and Scan in a branch, are built).
    """
    inside = () if answer.nodes else tuple(recurrent_in_branches(graph))
    fix = "Leave the named node out of the step that wrote it (option skip), or report this with the recipe."
    if inside:
        fix = "Export the branch that you use without the If, or write the recurrent operator as a Scan."
    elif not answer.nodes:
        fix = "Compile without steps (recipe float) to see whether the source itself is rejected, and report this."
    nodes = answer.nodes or inside
    at = f" at {', '.join(nodes)}" if nodes else ""
    because = "recurrent operators in a branch of an If are not built; the compiler says " if inside else ""
    return TargetError(
        f"{answer.compiler} rejects the graph for {device}{at}: {because}{answer.message}",
        expected="a graph that NVIDIA's parser reads and its builder builds",
        why="The engine is built from this graph on the device, by a compiler of the same family."
        if answer.is_proxy
        else "The device runs what this compiler builds.",
        fix=fix,
    )


def recurrent_in_branches(graph: ir.Graph) -> Iterator[str]:
    """Yield "LSTM name in the If name" for each recurrent operator that stands in a branch of an If itself.

    The If may stand in any subgraph. Operators in a Loop or Scan in a branch are not named: nobody saw them rejected.
    """
    for node in graph.all_nodes():
        if node.op_type != "If" or node.domain:
            continue
        for branch in node.attributes.values():
            if branch.type == ir.AttributeType.GRAPH:
                for inner in branch.as_graph():
                    if inner.op_type in _RECURRENT and not inner.domain:
                        yield f"{inner.op_type} {inner.name} in the If {node.name}"
