"""What is quantized in a graph: values that pass through integers or eight-bit floats, and products that read them."""

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.linear import stored_weight


@dataclass(frozen=True, slots=True)
class QuantizedValue:
    """A weight or an activation that passes through an integer (or eight-bit float) type."""

    kind: Literal["weight", "activation"]
    value: str
    """The stored tensor of a weight; the float value that is quantized, of an activation."""
    quantize: str | None
    """Node that quantizes, or None for a weight stored as integers."""
    dequantize: tuple[str, ...]
    """Nodes that make floats of it again; empty where an operator reads the integers."""
    dtype: str
    axis: int | None
    """Axis with a scale for each entry, or None for one scale in all."""
    consumers: tuple[str, ...]
    """Operator types that read the result."""


@dataclass(frozen=True, slots=True)
class QuantizedProduct:
    """A product, convolution or table that reads codes, written with Q/DQ pairs or as one operator."""

    node: str
    op_type: str
    activation: str | None
    """Type of the codes of its first operand, or None where that is float; of a table, always None."""
    weight: str | None
    """Type of the codes of its second operand, or None where that is float."""
    form: Literal["Q/DQ", "operator"]

    @property
    def types(self) -> str:
        """Both types, such as "uint8 x int8" or "float x int4"."""
        return f"{self.activation or 'float'} x {self.weight or 'float'}"


_FLOAT_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
# Operator: positions of the activation's codes, of their zero point, and of the weight's codes. None where codes are
# made inside, or there are none.
_OPERATORS: dict[str, tuple[int | None, int | None, int]] = {
    "QLinearMatMul": (0, 2, 3),
    "QLinearConv": (0, 2, 3),
    "QGemm": (0, 2, 3),
    "MatMulInteger": (0, 2, 1),
    "ConvInteger": (0, 2, 1),
    "MatMulIntegerToFloat": (0, 4, 1),
    "DynamicQuantizeMatMul": (None, None, 1),
    "MatMulNBits": (None, None, 1),
    "GatherBlockQuantized": (None, None, 0),
}
# What moves codes or dequantized numbers without changing one.
_MOVING = frozenset(
    {"Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Slice", "Gather"}
)
_FLOAT8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ)


def find_quantized_products(flow: Dataflow) -> list[QuantizedProduct]:
    """Return the products and tables that read codes, in the order of the data."""
    found = (quantized_product(node) for node in flow.ordered(flow.nodes) if node.outputs)
    return [each for each in found if each is not None]


def quantized_product(node: ir.Node) -> QuantizedProduct | None:
    """Return how a node computes with codes, or None where it does not.

    A method keeps such a node as it is: its codes and scales are what somebody has chosen and tested.
    """
    name = node.name or ""
    if node.op_type in _OPERATORS:
        return QuantizedProduct(name, node.op_type, *_operator_types(node), "operator")
    if node.op_type in _FLOAT_PRODUCTS and len(node.inputs) > 1:
        activation, weight = (_dequantized_type(value) for value in node.inputs[:2])
    elif node.op_type == "Gather":
        activation, weight = None, _dequantized_table(node)
    else:
        return None
    return QuantizedProduct(name, node.op_type, activation, weight, "Q/DQ") if activation or weight else None


def already_quantized(node: ir.Node) -> str:
    """Return the reason to keep a node as it is that reads codes, or an empty string."""
    product = quantized_product(node)
    return f"already quantized ({product.types})" if product is not None else ""


def _operator_types(node: ir.Node) -> tuple[str | None, str | None]:
    """Return the types of the codes that an integer operator reads."""
    activation, zero_point, weight = _OPERATORS[node.op_type]
    if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
        return None, f"int{node.attributes.get_int('bits', 4)}"
    if activation is None:
        return "uint8", _type_name(node.inputs[weight])
    zero = node.inputs[zero_point] if zero_point is not None and len(node.inputs) > zero_point else None
    return _type_name(node.inputs[activation], zero), _type_name(node.inputs[weight])


def _dequantized_type(value: ir.Value | None) -> str | None:
    """Return the type of the codes that a float value was made from and nothing else, or None."""
    while value is not None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "DequantizeLinear":
            return _type_name(node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None)
        if node.op_type == "Mul":
            # Eight-bit floats may be written as a Cast and the scale.
            casts = [source.producer() for source in node.inputs if source is not None]
            return next(filter(None, (_cast_type(each) for each in casts)), None)
        if node.op_type not in _MOVING:
            return None
        value = node.inputs[0]
    return None


def _dequantized_table(node: ir.Node) -> str | None:
    """Return the type of a table whose rows are dequantized, before or after they are selected."""
    table = node.inputs[0]
    if table is None:
        return None
    if constant_tensor(table) is None:
        producer = table.producer()
        stored = producer.inputs[0] if producer is not None and producer.inputs else None
        return _dequantized_type(table) if constant_tensor(stored) is not None else None
    readers = {use.node.op_type for use in node.outputs[0].uses()}
    return _type_name(table) if readers == {"DequantizeLinear"} else None


def _cast_type(node: ir.Node | None) -> str | None:
    if node is None or node.op_type != "Cast" or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    tensor = constant_tensor(source)
    dtype = source.dtype if tensor is None else tensor.dtype
    producer = source.producer()
    if dtype is None and producer is not None and producer.op_type == "Cast":
        dtype = ir.DataType(producer.attributes["to"].as_int())
    return dtype.name.lower() if dtype in _FLOAT8 else None


def _type_name(codes: ir.Value | None, zero_point: ir.Value | None = None) -> str | None:
    """Return the type of codes: their own, or that of a zero point they are read or made with."""
    if codes is None:
        return None
    maker = codes.producer()
    made_with = (
        maker.inputs[2] if maker is not None and maker.op_type == "QuantizeLinear" and len(maker.inputs) > 2 else None
    )
    for value in (codes, zero_point, made_with):
        tensor = constant_tensor(value)
        dtype = tensor.dtype if tensor is not None else value.dtype if value is not None else None
        if dtype is not None:
            return dtype.name.lower()
    # Without a zero point ONNX quantizes to uint8.
    return "uint8"


def find_quantized(flow: Dataflow) -> list[QuantizedValue]:
    """Return the quantized values in the order of the data."""
    found = [_activation(flow, node) for node in flow.find("QuantizeLinear", "DynamicQuantizeLinear")]
    found += [_weight(flow, node) for node in flow.find("DequantizeLinear")]
    return [each for each in found if each is not None]


def _activation(flow: Dataflow, node: ir.Node) -> QuantizedValue | None:
    source = node.inputs[0]
    if source is None:
        return None
    back = [user for user in flow.users(node.outputs[0]) if user.op_type == "DequantizeLinear"]
    direct = [user for user in flow.users(node.outputs[0]) if user.op_type != "DequantizeLinear"]
    readers = [reader for each in back for reader in flow.users(each.outputs[0])] + direct
    constant = flow.is_constant(source)
    stored = stored_weight(flow, source) if constant else None
    return QuantizedValue(
        kind="weight" if constant else "activation",
        value=(stored.value.name if stored is not None else source.name) or "",
        quantize=node.name or "",
        dequantize=tuple(each.name or "" for each in back),
        dtype=_dtype(node, node.outputs[0]),
        axis=_axis(flow, node),
        consumers=tuple(sorted({reader.op_type for reader in readers})),
    )


def _weight(flow: Dataflow, node: ir.Node) -> QuantizedValue | None:
    source = node.inputs[0]
    if source is None or not flow.is_constant(source):
        return None
    producer = source.producer()
    if producer is not None and producer.op_type == "QuantizeLinear":
        return None
    stored = stored_weight(flow, source)
    if stored is None:
        return None
    return QuantizedValue(
        kind="weight",
        value=stored.value.name or "",
        quantize=None,
        dequantize=(node.name or "",),
        dtype=_dtype(node, source),
        axis=_axis(flow, node),
        consumers=tuple(sorted({reader.op_type for reader in flow.users(node.outputs[0])})),
    )


def _dtype(node: ir.Node, value: ir.Value) -> str:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    dtype = value.dtype
    for each in (value, zero_point):
        if dtype is None and each is not None:
            tensor = constant_tensor(each)
            dtype = each.dtype if tensor is None else tensor.dtype
    return "uint8" if dtype is None else dtype.name.lower()


def _axis(flow: Dataflow, node: ir.Node) -> int | None:
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    shape = flow.shapes.shape(scale)
    if not shape or all(size == 1 for size in shape):
        return None
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 1
