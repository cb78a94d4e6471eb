"""Writes operators between Q/DQ pairs as their counterparts on codes: sums, products, sigmoids, pools.

ONNX Runtime joins most of these itself from the optimization level "extended" on. Written out they run in integers at
every level, and in the layout of the convolutions around them. A mean over the image, which the runtime leaves in
float, becomes a global average pool.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith_onnxruntime.absorbed_bounds import absorbing_quantize
from edgesmith_onnxruntime.pairs import one_scale_behind

_POOL = frozenset({"kernel_shape", "strides", "pads", "auto_pad", "ceil_mode", "count_include_pad"})
_COUNTERPARTS: dict[str, tuple[str, frozenset[str]]] = {
    "Add": ("QLinearAdd", frozenset()),
    "Mul": ("QLinearMul", frozenset()),
    "Sigmoid": ("QLinearSigmoid", frozenset()),
    "LeakyRelu": ("QLinearLeakyRelu", frozenset({"alpha"})),
    "GlobalAveragePool": ("QLinearGlobalAveragePool", frozenset()),
    "AveragePool": ("QLinearAveragePool", _POOL),
}
"""Operator to its counterpart, and the attributes that both know."""
_CODE_MOVES = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
"""Operators that only move values or choose among them: on codes they do the same."""

Join = Callable[[GraphEditor, ir.Node, Sequence[ir.Node], ir.Node], ir.Value | None]


def join_integer_operators(graph: ir.Graph) -> int:
    """Replace operators between Q/DQ pairs by their counterparts on codes; return how many. Edits `graph`."""
    editor = GraphEditor(graph)
    joined = 0
    for node in [each for each in graph if each.domain == "" and len(each.outputs) == 1]:
        join = _join_for(node)
        quantize = absorbing_quantize(node.outputs[0])
        if join is None or quantize is None:
            continue
        values = node.inputs if node.op_type in ("Add", "Mul", "Concat") else node.inputs[:1]
        sources = [source for value in values if (source := one_scale_behind(value)) is not None]
        result = join(editor, node, sources, quantize) if len(sources) == len(values) else None
        if result is not None:
            editor.take_over(quantize, result)
            joined += 1
    if joined:
        graph.opset_imports.setdefault("com.microsoft", 1)
    return joined


def _join_for(node: ir.Node) -> Join | None:
    if node.op_type in _CODE_MOVES:
        return _move_codes
    if node.op_type == "Concat":
        return _join_concat
    if node.op_type == "ReduceMean":
        return _join_image_mean
    name, known = _COUNTERPARTS.get(node.op_type, ("", frozenset()))
    return _join_counterpart if name and set(node.attributes) <= known else None


def _join_counterpart(
    editor: GraphEditor, node: ir.Node, sources: Sequence[ir.Node], quantize: ir.Node
) -> ir.Value | None:
    inputs = [value for source in sources for value in source.inputs] + list(quantize.inputs[1:])
    return _insert(editor, node, quantize, _COUNTERPARTS[node.op_type][0], inputs)


def _join_concat(editor: GraphEditor, node: ir.Node, sources: Sequence[ir.Node], quantize: ir.Node) -> ir.Value | None:
    inputs = [*quantize.inputs[1:], *(value for source in sources for value in source.inputs)]
    return _insert(editor, node, quantize, "QLinearConcat", inputs)


def _move_codes(editor: GraphEditor, node: ir.Node, sources: Sequence[ir.Node], quantize: ir.Node) -> ir.Value | None:
    """Let the node itself work on codes, where scale and zero point are the same before and behind it."""
    (source,) = sources
    for before, behind in zip(source.inputs[1:], quantize.inputs[1:], strict=True):
        one, other = constant_value(before), constant_value(behind)
        if one is None or other is None or one.dtype != other.dtype or one.reshape(()) != other.reshape(()):
            return None
    return _insert(editor, node, quantize, node.op_type, [source.inputs[0], *node.inputs[1:]], domain="")


def _join_image_mean(
    editor: GraphEditor, node: ir.Node, sources: Sequence[ir.Node], quantize: ir.Node
) -> ir.Value | None:
    image, axes = node.inputs[0], constant_value(node.inputs[1] if len(node.inputs) > 1 else None)
    if image is None or image.shape is None or len(image.shape) != 4 or axes is None:
        return None
    if sorted(axis % 4 for axis in axes.tolist()) != [2, 3]:
        return None
    inputs = [*sources[0].inputs, *quantize.inputs[1:]]
    pooled = _insert(editor, node, quantize, "QLinearGlobalAveragePool", inputs, {})
    if node.attributes.get_int("keepdims", 1):
        return pooled
    pooled.shape, pooled.type = ir.Shape([*image.shape[:2], 1, 1]), quantize.outputs[0].type
    spatial = editor.add_initializer(f"{node.name}_axes", np.array([2, 3], np.int64))
    return _insert(editor, node, quantize, "Squeeze", [pooled, spatial], {}, domain="")


def _insert(
    editor: GraphEditor,
    node: ir.Node,
    place: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, int] | None = None,
    *,
    domain: str = "com.microsoft",
) -> ir.Value:
    """Insert the counterpart of `node` before `place`, with the attributes of `node` unless others are given."""
    chosen = (
        {name: attribute.value for name, attribute in node.attributes.items()} if attributes is None else attributes
    )
    return editor.insert_before(place, op_type, inputs, chosen, domain=domain, name=f"{node.name}_integer").outputs[0]
