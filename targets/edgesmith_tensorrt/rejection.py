"""What to tell the user where NVIDIA's compiler rejects a graph, also where it names no node itself."""

import onnx_ir as ir

from edgesmith.errors import TargetError
from edgesmith_tensorrt.gate import GateResult
from edgesmith_tensorrt.last_steps import recurrent_in_branches

_INTERNAL = "Internal Error"


def rejected(device: str, answer: GateResult, graph: ir.Graph) -> TargetError:
    """Return the error for a graph that the compiler rejects.

    TensorRT for RTX ends with an internal error without a node for a recurrent operator in a branch of an If whose
    steps nobody reads (seen with 1.7.1; `last_steps` lets the last step be read from them where it can).
    """
    inside: tuple[str, ...] = ()
    if not answer.nodes and _INTERNAL in answer.message:
        found = recurrent_in_branches(graph)
        inside = tuple(f"{node.op_type} {node.name} in the If {branching.name}" for node, branching in found)
    fix = "Leave the named node out of the step that wrote it (option skip), or report this with the recipe."
    if inside:
        fix = "Export the branch that you use without the If, or read all steps of the operator in its branch."
    elif not answer.nodes and any(node.op_type == "If" for node in graph.all_nodes()):
        fix = (
            "Both branches of an If must run at every size of the profile, with outputs of one rank: export the branch "
            "that you use without the If, or fix sizes at which both run (--shape NAME=SIZE)."
        )
    elif not answer.nodes:
        fix = "Compile without steps (recipe float) to see whether the source itself is rejected, and report this."
    nodes = answer.nodes or inside
    at = f" at {', '.join(nodes)}" if nodes else ""
    because = (
        "recurrent operators in a branch of an If are built only if their steps are read; the compiler says "
        if inside
        else ""
    )
    return TargetError(
        f"{answer.compiler} rejects the graph for {device}{at}: {because if inside else ''}{answer.message}",
        expected="a graph that NVIDIA's parser reads and its builder builds",
        why="The engine is built from this graph on the device, by a compiler of the same family."
        if answer.is_proxy
        else "The device runs what this compiler builds.",
        fix=fix,
    )
