"""Keeps codes of images with their channels last, the layout of ONNX Runtime's integer convolutions.

With channels first, a QLinearConv transposes its input and its output each time. Here an image is transposed where it
first meets a convolution, and back where something reads it that knows only channels first.
"""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import Attribute, GraphEditor, constant_tensor, constant_value

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_RUNTIME = "com.microsoft"
_IMAGES = {"QLinearAdd": slice(0, 6, 3), "QLinearMul": slice(0, 6, 3), "QLinearConcat": slice(2, None, 3)}
"""Where the images stand among the inputs; at the first place in all other operators."""
_FOLLOWING = frozenset({*_IMAGES, "QLinearSigmoid", "QLinearLeakyRelu", "QLinearAveragePool"})
"""Operators that take channels last wherever their images have them, besides those treated by name below."""
_MEAN = "QLinearGlobalAveragePool"


def keep_channels_last(graph: ir.Graph) -> int:
    """Bring integer convolutions, and what stands between them, to channels last; return how many. Edits `graph`.

    Operators other than QLinearConv follow only where all their images have channels last already.
    """
    layout = _Layout(graph)
    for node in list(graph):
        layout.convert(node)
    layout.finish()
    if layout.converted:
        graph.opset_imports.setdefault(_RUNTIME, 1)
    return len(layout.converted)


class _Layout:
    """A graph on its way to channels last."""

    def __init__(self, graph: ir.Graph) -> None:
        self._editor = GraphEditor(graph)
        self._last: dict[ir.Value, ir.Value] = {}
        """Images with channels first to the same with channels last."""
        self.converted: dict[ir.Node, ir.Value] = {}
        """Nodes that have a counterpart by now, and its output."""

    def convert(self, node: ir.Node) -> None:
        """Add the counterpart of `node` if it has one."""
        images = node.inputs[_IMAGES.get(node.op_type, slice(0, 1))]
        if node.op_type == "QLinearConv" and _is_over_images(node):
            self._require_last(node)
            self._add(node, "QLinearConv", {"channels_last": 1})
        elif not images or any(image not in self._last for image in images):
            return
        elif node.domain == _RUNTIME and node.op_type in (_MEAN, "QLinearAveragePool"):
            self._add(node, node.op_type, {"channels_last": 1})
        elif node.domain == _RUNTIME and node.op_type == "QLinearConcat":
            self._add(node, node.op_type, {"axis": _TO_LAST.index(node.attributes.get_int("axis", 1) % 4)})
        elif node.domain == _RUNTIME and node.op_type in _FOLLOWING:
            self._add(node, node.op_type, {})
        elif node.domain == "" and node.op_type == "MaxPool" and len(node.outputs) == 1:
            self._add(node, "NhwcMaxPool", {})
        elif node.domain == "" and self._joins_points(node):
            self._read_points(node)

    def finish(self) -> None:
        """Transpose images back for those who read them with channels first, and remove what was converted."""
        for node, made in self.converted.items():
            image = node.outputs[0]
            if image in self._last and (
                image.is_graph_output() or any(n not in self.converted for n, _ in image.uses())
            ):
                back = self._editor.insert_after(
                    made, "Transpose", (made,), {"perm": _TO_FIRST}, name=f"{image.name}_channels_first"
                ).outputs[0]
                back.shape, back.type = image.shape, image.type
                self._editor.replace_uses(image, back, keep=tuple(self.converted))
        self._editor.remove_unused(reversed(self.converted))

    def _require_last(self, node: ir.Node) -> None:
        image = node.inputs[0]
        if image is not None and image not in self._last:
            made = self._editor.insert_before(
                node, "Transpose", (image,), {"perm": _TO_LAST}, name=f"{image.name}_channels_last"
            ).outputs[0]
            self._last[image] = _described(made, image)

    def _add(self, node: ir.Node, op_type: str, attributes: dict[str, Attribute]) -> None:
        inputs = [self._last.get(value, value) if value is not None else None for value in node.inputs]
        kept = {name: attribute.value for name, attribute in node.attributes.items() if name != "storage_order"}
        made = self._editor.insert_before(
            node, op_type, inputs, kept | attributes, domain=_RUNTIME, name=f"{node.name}_channels_last"
        ).outputs[0]
        self._last[node.outputs[0]] = self.converted[node] = _described(made, node.outputs[0])

    def _joins_points(self, node: ir.Node) -> bool:
        """Return whether a node drops the height and width of images that are one point each, after a mean."""
        image = node.inputs[0]
        producer = image.producer() if image is not None else None
        if producer is None or producer.op_type != _MEAN:
            return False
        if node.op_type == "Flatten":
            return node.attributes.get_int("axis", 1) == 1
        wanted = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
        if wanted is None:
            return False
        if node.op_type == "Squeeze":
            return sorted(axis % 4 for axis in wanted.tolist()) == [2, 3]
        # A 0 stands for the size at its place, and only the first axis keeps its place.
        return node.op_type == "Reshape" and wanted.size > 0 and bool((wanted[1:] != 0).all())

    def _read_points(self, node: ir.Node) -> None:
        """Let a node read points with channels last: their numbers stand in the same order."""
        image = node.inputs[0]
        if image is None:
            return
        node.replace_input_with(0, self._last[image])
        if node.op_type == "Squeeze":
            axes = self._editor.add_initializer(f"{node.name}_axes_last", np.array([1, 2], np.int64))
            node.replace_input_with(1, axes)


def _is_over_images(node: ir.Node) -> bool:
    weight = constant_tensor(node.inputs[3])
    return node.domain == "" and weight is not None and len(weight.shape) == 4


def _described(made: ir.Value, image: ir.Value) -> ir.Value:
    made.type = image.type
    if image.shape is not None and len(image.shape) == 4:
        made.shape = ir.Shape([image.shape[axis] for axis in _TO_LAST])
    return made
