"""Applies activation functions to parts of their input, so that each part can have a range of its own. Exact.

SplitQuant splits activations by position (arXiv 2501.12428, section 3). That equals the original only for functions
that look at one number at a time. It is done along the last axis, where channels of transformers are.
"""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.node_names import node_name
from edgesmith.host.context import Notes

ELEMENTWISE = frozenset({"Relu", "Gelu", "Tanh", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu", "Erf"})
"""Activation functions of one input that can be applied to parts. Softmax cannot: it normalizes along an axis."""
_PARTS = 3


def split_activations(editor: GraphEditor, notes: Notes) -> int:
    """Let each activation function work on three parts of its input's last axis; return how many were split."""
    count = 0
    for node in list(editor.graph):
        if node.op_type not in ELEMENTWISE or node.domain != "":
            continue
        source = node.inputs[0]
        width = source.shape[-1] if source is not None and source.shape is not None and len(source.shape) else None
        if source is None or not isinstance(width, int) or width < _PARTS:
            notes.skip(node_name(node), f"its last axis is {width or 'unknown'}; three parts need 3 or more")
            continue
        _split(editor, node, source, width)
        count += 1
    return count


def _split(editor: GraphEditor, node: ir.Node, source: ir.Value, width: int) -> None:
    name, output = node_name(node), node.outputs[0]
    sizes = [width // _PARTS + (place < width % _PARTS) for place in range(_PARTS)]
    lengths = editor.add_initializer(f"{name}_lengths", np.array(sizes, np.int64))
    split = editor.insert_before(node, "Split", (source, lengths), {"axis": -1}, name=f"{name}_split", outputs=_PARTS)
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    parts = []
    for place, (piece, size) in enumerate(zip(split.outputs, sizes, strict=True)):
        piece.type, piece.shape = source.type, _with_width(source, size)
        part = editor.insert_before(node, node.op_type, (piece,), attributes, name=f"{name}_part{place}")
        part.outputs[0].type, part.outputs[0].shape = output.type, piece.shape
        parts.append(part.outputs[0])
    joined = editor.insert_before(node, "Concat", parts, {"axis": -1}, name=f"{name}_concat").outputs[0]
    joined.type, joined.shape = output.type, output.shape
    editor.replace_uses(output, joined)
    editor.remove_unused((node,))


def _with_width(value: ir.Value, width: int) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([*value.shape[:-1], width])
