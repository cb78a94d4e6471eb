"""Constants that no graph can mean: what is no number, masks that became infinite, epsilons that vanished."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgesmith import Dialect, Finding, Model
from edgesmith.graph.edit import constant_scalar, constant_value

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_UNSAFE_AT_ZERO = ("Sqrt", "Reciprocal", "Log", "Div", "Pow")


def find_spoilt_constants(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield what is wrong with the constants of a lowered graph.

    Args:
        model: The graph as it ships.
        dialect: That of the target. These rules hold for all targets.
    """
    for value, readers in _constants(model.graph):
        tensor = value.const_value
        numbers = constant_value(value)
        if tensor is None or numbers is None:
            continue
        if np.isnan(numbers).any():
            yield Finding(f"{value.name} holds NaN.", "Repair the weight, or the step that computed it.", readers)
        elif tensor.dtype == ir.DataType.FLOAT16 and np.isinf(numbers).any():
            yield Finding(
                f"{value.name} holds infinity in float16, so that a row that is masked whole becomes NaN.",
                "Use -65504 for masks before the model is cast, or keep their sum in float32.",
                readers,
            )
    for node in model.graph.all_nodes():
        if node.op_type == "Add" and node.outputs[0].dtype == ir.DataType.FLOAT16 and _guards_nothing(node):
            yield Finding(
                "An epsilon became 0 in float16, so that what it guards divides by 0.",
                "Keep these nodes in float32, or use an epsilon of at least 6e-8.",
                (str(node.name),),
            )


def _constants(graph: ir.Graph) -> Iterator[tuple[ir.Value, tuple[str, ...]]]:
    """Yield every stored float value of the main graph with the names of the nodes that read it."""
    made = (node.outputs[0] for node in graph if node.op_type == "Constant" and not node.domain)
    for value in (*graph.initializers.values(), *made):
        if value.dtype in _FLOATS:
            yield value, tuple(str(node.name) for node, _ in value.uses())


def _guards_nothing(node: ir.Node) -> bool:
    """Return whether an Add adds a constant 0 to what is then divided by, or the like."""
    users = [user for user, _ in node.outputs[0].uses()]
    return any(constant_scalar(value) == 0 for value in node.inputs) and any(
        user.op_type in _UNSAFE_AT_ZERO for user in users
    )
