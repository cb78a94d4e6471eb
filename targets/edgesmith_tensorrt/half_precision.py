"""Writes a float32 graph in float16 or bfloat16, except where that would overflow or lose what matters.

TensorRT 10 and 11 build strongly typed networks: precision is what the graph says. So every value gets its type here,
with Cast nodes at the borders. What stays in float32, and why, is decided by the caller; types of operators come from
the ONNX schemas, so that no list of operators has to be kept.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor

LARGEST = float(np.finfo(np.float16).max)
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)

HALF, BRAIN = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_FULL = ir.DataType.FLOAT
_SCHEMA_NAMES = {HALF: "tensor(float16)", BRAIN: "tensor(bfloat16)"}
_TYPE_ATTRIBUTES = {"Cast": "to"}
_TYPED_BY_ATTRIBUTE = frozenset(("Cast", "Constant", "ConstantOfShape"))


@dataclass(frozen=True, slots=True)
class _Slots:
    """Which float inputs and outputs of a node take part in its type, and whether that type may be float16."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    convertible: bool


def write_half(model: ir.Model, keep: Collection[ir.Node], dtype: ir.DataType = HALF) -> int:
    """Give float32 values of the main graph a type of 16 bits and return how many nodes compute in it. Edits `model`.

    Inputs and outputs of the graph keep their types. Constants beyond the range of float16, such as the -3e38 of a
    mask, become its largest number of that sign.

    Args:
        model: A graph whose values have types, without local functions.
        keep: Nodes that go on computing in float32.
        dtype: `HALF`, or `BRAIN` for bfloat16.
    """
    graph = model.graph
    editor, writer = GraphEditor(graph), _Writer(graph, dtype)
    converted = 0
    for node in tuple(graph):
        slots = _slots(node, graph.opset_imports, dtype, writer.half)
        if node in keep or not slots.convertible or not (slots.inputs or slots.outputs):
            writer.read_full(editor, node)
        else:
            writer.compute_half(editor, node, slots)
            converted += 1
    writer.restore_outputs(editor)
    return converted


class _Writer:
    """Knows which values are float16 by now, and the casts that stand between the two types."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType) -> None:
        self._graph = graph
        self._type = dtype
        self.half: set[ir.Value] = set()
        """Values that were float32 and are so no longer; a source may have others of 16 bits, which stay."""
        self._other: dict[ir.Value, ir.Value] = {}
        """A value to the one that holds it in the other type."""

    def read_full(self, editor: GraphEditor, node: ir.Node) -> None:
        """Let a node that stays as it is read float32."""
        for value in self._captured(node):
            if value in self.half:
                editor_value = self._cast(editor, value, _FULL)
                for user, index in tuple(value.uses()):
                    if user is node or user.graph is not self._graph:
                        user.replace_input_with(index, editor_value)

    def compute_half(self, editor: GraphEditor, node: ir.Node, slots: _Slots) -> None:
        """Let a node read and write float16."""
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if index in slots.inputs and value not in self.half:
                node.replace_input_with(index, self._in_half(editor, value))
            elif index not in slots.inputs and value in self.half and node.op_type not in _TYPE_ATTRIBUTES:
                node.replace_input_with(index, self._cast(editor, value, _FULL))
        _convert_attributes(node, self._type)
        for index in slots.outputs:
            output = node.outputs[index]
            output.type = ir.TensorType(self._type)
            self.half.add(output)

    def restore_outputs(self, editor: GraphEditor) -> None:
        """Cast outputs of the graph back to float32, under their names."""
        for index, output in enumerate(tuple(self._graph.outputs)):
            if output not in self.half:
                continue
            name = output.name
            output.name = editor.value_name(f"{name}_half")
            cast = editor.insert_after(output, "Cast", (output,), {"to": int(_FULL)}, name=f"{name}_full")
            full = cast.outputs[0]
            full.name, full.shape, full.type = name, output.shape, ir.TensorType(_FULL)
            self._graph.outputs[index] = full

    def _captured(self, node: ir.Node) -> Iterator[ir.Value]:
        yield from (value for value in node.inputs if value is not None)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                for inner in attribute.as_graph().all_nodes():
                    yield from (value for value in inner.inputs if value is not None)

    def _in_half(self, editor: GraphEditor, value: ir.Value) -> ir.Value:
        if value not in self._other:
            tensor = value.const_value if value.producer() is None and not value.is_graph_input() else None
            self._other[value] = (
                self._cast(editor, value, self._type)
                if tensor is None
                else editor.add_initializer(f"{value.name}_half", as_half(tensor.numpy(), self._type))
            )
            self.half.add(self._other[value])
        return self._other[value]

    def _cast(self, editor: GraphEditor, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value not in self._other:
            suffix = "full" if dtype == _FULL else "half"
            node = editor.insert_after(value, "Cast", (value,), {"to": int(dtype)}, name=f"{value.name}_{suffix}")
            result = node.outputs[0]
            result.shape, result.type = value.shape, ir.TensorType(dtype)
            self._other[value] = result
        return self._other[value]


def as_half(array: np.ndarray, dtype: ir.DataType = HALF) -> np.ndarray:
    """Return a float array in 16 bits; what is too large becomes the largest number, infinities included."""
    kind = np.dtype(np.float16) if dtype == HALF else np.dtype(ml_dtypes.bfloat16)
    largest = float(ml_dtypes.finfo(kind).max)
    half: np.ndarray = np.clip(array, -largest, largest).astype(kind)
    return half


def fits_half(array: np.ndarray) -> bool:
    """Return whether every number of `array` that is not 0 is a normal number in float16."""
    magnitudes = np.abs(array[array != 0])
    return bool(magnitudes.size == 0 or (magnitudes.min() >= SMALLEST_NORMAL and magnitudes.max() <= LARGEST))


def _convert_attributes(node: ir.Node, dtype: ir.DataType) -> None:
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, np.float32)))
    name = _TYPE_ATTRIBUTES.get(node.op_type)
    if name is not None and name in node.attributes and node.attributes[name].value == int(_FULL):
        node.attributes[name] = ir.AttrInt64(name, int(dtype))
    value = node.attributes.get("value")
    if value is not None and value.type == ir.AttributeType.TENSOR and value.as_tensor().dtype == _FULL:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(as_half(value.as_tensor().numpy(), dtype)))


def _slots(node: ir.Node, opsets: dict[str, int], dtype: ir.DataType, half: Collection[ir.Value]) -> _Slots:
    """Return the inputs and outputs of a node that are or were float32 and whose type its schema leaves open.

    A node whose output has a type that follows from none of these inputs stays as it is, such as EyeLike with its
    `dtype`; those that make constants and casts get another attribute.
    """
    nothing = _Slots((), (), False)
    version = opsets.get(node.domain, 0)
    if not onnx.defs.has(node.op_type, version, node.domain):
        return nothing
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return nothing
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}

    def open_slots(values: Collection[ir.Value | None], formals: list[onnx.defs.OpSchema.FormalParameter]) -> list[int]:
        found = []
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)]
            if value is not None and (value.dtype == _FULL or value in half) and formal.type_str in allowed:
                types.append(allowed[formal.type_str])
                names.append(formal.type_str)
                found.append(index)
        return found

    types: list[list[str]] = []
    names: list[str] = []
    inputs = open_slots(node.inputs, list(schema.inputs)) if schema.inputs else []
    if node.op_type in _TYPE_ATTRIBUTES:
        # The output's type is an attribute; the input may be of any.
        inputs = []
    bound = frozenset(names)
    if node.op_type == "DequantizeLinear":
        bound |= {formal.type_str for formal in schema.outputs if "output_dtype" not in node.attributes}
    outputs = open_slots(node.outputs, list(schema.outputs))
    follows = node.op_type in _TYPED_BY_ATTRIBUTE or bound.issuperset(names)
    return _Slots(tuple(inputs), tuple(outputs), follows and all(_SCHEMA_NAMES[dtype] in each for each in types))
