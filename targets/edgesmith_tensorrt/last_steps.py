"""Lets recurrent operators in branches of an If give all their steps, where only the last was read.

TensorRT runs them as loops. Its compiler ends with an internal error where nobody in the branch reads the steps of such
a loop (TensorRT for RTX 1.7.1), and builds it where somebody does.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor

_RECURRENT = ("LSTM", "GRU", "RNN")
_STEPS, _LAST = 0, 1
"""Outputs: hidden values of all steps [steps, directions, sequences, hidden], and those of the last."""
_LENGTHS = 4
"""Input with the length of each sequence."""


def take_last_steps(model: ir.Model) -> list[str]:
    """Read the last hidden values from those of all steps where nobody reads these; return the names. Edits `model`.

    Only operators that run forward over whole sequences are changed: in others the last step is not the last row.
    """
    editor, changed = GraphEditor(model.graph), []
    for node, _ in recurrent_in_branches(model.graph):
        if _has_unread_steps(node) and _ends_with_last_row(node):
            index = editor.add_initializer(f"{node.name}_last", np.asarray(-1, np.int64))
            steps, last = node.outputs[_STEPS], node.outputs[_LAST]
            steps.name = steps.name or editor.value_name(f"{node.name}_steps")
            row = editor.insert_after(steps, "Gather", (steps, index), {"axis": 0}, name=f"{node.name}_last_row")
            editor.replace_uses(last, row.outputs[0])
            changed.append(str(node.name))
    return changed


def recurrent_in_branches(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Yield each recurrent operator that stands in a branch of an If itself, with the If, in any subgraph.

    Operators in a Loop or Scan in a branch are left out: nobody saw them rejected.
    """
    for node in graph.all_nodes():
        if node.op_type != "If" or node.domain:
            continue
        for branch in node.attributes.values():
            if branch.type == ir.AttributeType.GRAPH:
                for inner in branch.as_graph():
                    if inner.op_type in _RECURRENT and not inner.domain:
                        yield inner, node


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _has_unread_steps(node: ir.Node) -> bool:
    return len(node.outputs) > _LAST and not _is_read(node.outputs[_STEPS]) and _is_read(node.outputs[_LAST])


def _ends_with_last_row(node: ir.Node) -> bool:
    forward = node.attributes.get_string("direction", "forward") == "forward"
    lengths = node.inputs[_LENGTHS] if len(node.inputs) > _LENGTHS else None
    return forward and lengths is None and not node.attributes.get_int("layout", 0)
