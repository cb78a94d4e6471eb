"""Builds tiny ONNX graphs for tests of quantization and lowering, and the context to run a method on them."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgesmith.execution.reference import ReferenceSession
from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect, TensorFormat
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith_calibration.sources import ArraySource
from edgesmith_onnxruntime.cpu import DIALECT, OnnxCpu
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8

Arrays = Mapping[str, np.ndarray]
Node = onnx.NodeProto

SIGNED = Dialect(
    name="signed",
    opset=20,
    activation=TensorFormat("int8", symmetric=True),
    weight=TensorFormat("int8", symmetric=True, granularity="channel"),
    operators=frozenset({"MatMul", "Gemm", "Conv"}),
)
"""Symmetric int8 with zero point 0 and biases in float, as TensorRT takes it."""


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> Node:
    return helper.make_node(op_type, list(inputs), [output], f"node_{output}", **attributes)


def graph(
    nodes: Sequence[Node],
    weights: Arrays,
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 20,
    types: Mapping[str, int] | None = None,
) -> Model:
    """Return a Model with known shapes. Inputs are float unless `types` says otherwise."""
    types = types or {}
    proto = helper.make_model(
        helper.make_graph(
            list(nodes),
            "graph",
            [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), None) for n in outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(proto)
    return Model(ir.from_proto(proto), Task(), Provenance("test", "test", "test"))


def context(options: Any = None, data: Arrays | None = None, dialect: Dialect = DIALECT) -> Context[Any]:
    source = None if data is None else ArraySource(data)
    return Context(options=options, dialect=dialect, scratch=Path(tempfile.gettempdir()), calibration=source)


def quantize(model: Model, data: Arrays | None, dialect: Dialect = DIALECT, **options: Any) -> Model:
    return QuantizeInt8().apply(model, context(QuantizeInt8Options(**options), data, dialect))


def lower(model: Model, data: Arrays | None = None) -> Model:
    return OnnxCpu().lower(model, context(None, data))


def run(model: Model, inputs: Arrays, optimization: Any = "basic") -> dict[str, np.ndarray]:
    return ReferenceSession(model.ir, optimization=optimization).run(inputs)


def operators(model: Model) -> Counter[str]:
    return Counter(each.op_type for each in model.graph)


def executed_operators(model: Model) -> Counter[str]:
    """Return the operators that ONNX Runtime executes after all its own fusions."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(
            ir.to_proto(model.ir).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        optimized = onnx.load(options.optimized_model_filepath)
    return Counter(each.op_type for each in optimized.graph.node)


def sqnr(reference: np.ndarray, actual: np.ndarray) -> float:
    """Return the signal-to-noise ratio in dB, at most 200."""
    noise = float(np.square((reference - actual).astype(np.float64)).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 200.0 if noise == 0 else 10 * float(np.log10(max(signal, 1e-30) / noise))


def strip_quantization(model: Model, original: Model) -> Model:
    """Return `model` with Q/DQ pairs bypassed and each dequantized weight replaced by the original array."""
    stripped = model.clone()
    weights = {str(v.name): v.const_value for v in original.graph.initializers.values()}
    for each in list(stripped.graph):
        if each.op_type != "DequantizeLinear":
            continue
        source = each.inputs[0]
        producer = source.producer()
        replacement = producer.inputs[0] if producer is not None else _original(stripped.graph, each, weights)
        name = each.outputs[0].name if each.outputs[0].is_graph_output() else replacement.name
        ir.convenience.replace_all_uses_with(each.outputs[0], replacement, replace_graph_outputs=True)
        each.outputs[0].name, replacement.name = f"{name}_stripped", name
    return stripped


def _original(owner: ir.Graph, dequantize: ir.Node, weights: Mapping[str, Any]) -> ir.Value:
    """Return the float constant that a dequantized one stands for: the one whose rounding it is."""
    codes, scale = dequantize.inputs[0].const_value.numpy(), dequantize.inputs[1].const_value.numpy()
    axis = dequantize.attributes.get_int("axis", 1)
    shape = [1] * codes.ndim
    if scale.ndim:
        shape[axis] = -1
    values = codes * scale.reshape(shape if codes.ndim else ())
    step = np.abs(scale).reshape(shape if codes.ndim else ())
    fitting = [t for t in weights.values() if tuple(t.shape.numpy()) == codes.shape and t.dtype == ir.DataType.FLOAT]
    found = next(t for t in fitting if bool((np.abs(t.numpy() - values) <= 0.5001 * step).all()))
    value = ir.Value(name=f"{dequantize.name}_original", const_value=ir.tensor(found.numpy()))
    value.shape, value.type = ir.Shape(codes.shape), ir.TensorType(ir.DataType.FLOAT)
    owner.register_initializer(value)
    return value


def convolution_in_float16() -> Model:
    """A quantized convolution in float16 with the bias 1, 2, 3, 4, which ONNX Runtime loses from its level basic on.

    It writes the bias as codes with the scale of input times weight, 2**-4 times 2**-24, which float16 cannot hold.
    """
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
    g (float16[1, 3, 2, 2] x) => (float16[1, 4, 2, 2] y)
    <int8 zero = {0}, int8[4, 3, 1, 1] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}> {
        scale = Constant<value = float16 {11264}>()
        small = Constant<value = float16 {1}>()
        bias = Constant<value = float16[4] {15360, 16384, 16896, 17408}>()
        code = QuantizeLinear(x, scale, zero)
        activation = DequantizeLinear(code, scale)
        weight = DequantizeLinear(w, small)
        product = Conv(activation, weight, bias)
        rounded = QuantizeLinear(product, scale, zero)
        y = DequantizeLinear(rounded, scale)
    }""")
    return Model(model, Task(), Provenance("made here", "test", ""))
