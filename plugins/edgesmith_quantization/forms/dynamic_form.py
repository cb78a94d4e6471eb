"""Writes dynamic quantization: DynamicQuantizeLinear, an integer product, and a scale back to float."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import Attribute, GraphEditor
from edgesmith_quantization.finding.candidates import Candidate
from edgesmith_quantization.forms.weights import WeightStore, constant_array


def write_dynamic(editor: GraphEditor, candidates: Sequence[Candidate], store: WeightStore) -> None:
    """Replace each candidate by its integer product with ranges computed at run time. Edits the graph."""
    quantized: dict[ir.Value, ir.Node] = {}
    for candidate in candidates:
        # Read from the node: the candidate's own record may name the output of a product that is replaced by now.
        activation = candidate.node.inputs[0]
        if activation is None:
            continue
        if activation not in quantized:
            name = f"{activation.name}_quantize"
            node = editor.insert_after(activation, "DynamicQuantizeLinear", (activation,), name=name, outputs=3)
            quantized[activation] = node
        _write_product(editor, candidate, quantized[activation], store)


def _write_product(editor: GraphEditor, candidate: Candidate, quantize: ir.Node, store: WeightStore) -> None:
    node = candidate.node
    codes, scale, zero_point = quantize.outputs
    # MatMulInteger reads its weight as [inputs, channels]; Gemm's may be stored the other way round.
    weight = store.weight(candidate, transpose=candidate.channel_axis == 0 and node.op_type != "Conv")
    convolution = node.op_type == "Conv"
    attributes: dict[str, Attribute] = {}
    weight_scale, weight_zero_point = weight.scale, weight.zero_point
    if convolution:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        weight_zero_point = _constant(editor, weight.zero_point, np.zeros((), np.int8), "scalar")
        weight_scale = _constant(editor, weight.scale, _per_channel(weight.scale_array, node), "spread")

    def insert(op_type: str, *inputs: ir.Value, **extra: Attribute) -> ir.Value:
        name = f"{candidate.name}_{op_type}"
        return editor.insert_before(node, op_type, inputs, extra, name=name).outputs[0]

    accumulated = insert(
        "ConvInteger" if convolution else "MatMulInteger",
        *(codes, weight.codes, zero_point, weight_zero_point),
        **attributes,
    )
    product_scale = insert("Mul", scale, weight_scale)
    result = insert("Mul", insert("Cast", accumulated, to=int(ir.DataType.FLOAT)), product_scale)
    if candidate.bias is not None:
        bias = candidate.bias
        if convolution:
            bias = _constant(editor, bias, _per_channel(constant_array(bias), node), "spread")
        result = insert("Add", result, bias)
    result.type = ir.TensorType(ir.DataType.FLOAT)
    editor.take_over(node, result)


def _per_channel(values: np.ndarray, node: ir.Node) -> np.ndarray:
    """Return one number per channel shaped to multiply an output of `node`: [C, 1, ...]."""
    weight = node.inputs[1]
    rank = len(weight.shape) if weight is not None and weight.shape is not None else 4
    return values if values.ndim == 0 else values.reshape(-1, *[1] * (rank - 2))


def _constant(editor: GraphEditor, like: ir.Value, array: np.ndarray, suffix: str) -> ir.Value:
    return editor.add_initializer(f"{like.name}_{suffix}", array)
