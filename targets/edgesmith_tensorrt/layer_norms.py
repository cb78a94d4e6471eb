"""Writes layer normalizations that an exporter spelled out in arithmetic as one LayerNormalization.

TensorRT computes that operator in float32 whatever it reads, and warns of the arithmetic, whose squares overflow in
float16. ONNX Runtime's own fusion of the arithmetic gives a graph that does not load where casts stand around it.
"""

import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_tensor
from edgesmith.graph.norm import Norm
from edgesmith.graph.structure import find_structure

_OPSET = 17
"""First opset with LayerNormalization."""


def join_layer_norms(model: ir.Model) -> list[ir.Node]:
    """Replace layer normalizations over the last axis that are written out; return the new nodes. Edits `model`.

    Those without a scale, and other kinds, stay: older opsets have no operator for them.
    """
    if model.graph.opset_imports.get("", 0) < _OPSET:
        return []
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in (*model.graph.inputs, *model.graph.initializers.values())}
    editor, made = GraphEditor(model.graph), []
    for norm in find_structure(model).norms:
        if norm.fused or norm.kind != "layer":
            continue
        source, output = values.get(norm.input), values.get(norm.output)
        scale = values.get(norm.scale) if norm.scale else None
        bias = values.get(norm.bias) if norm.bias else None
        last = output.producer() if output is not None else None
        if source is None or last is None or not _is_vector(scale, norm) or (norm.bias and not _is_vector(bias, norm)):
            continue
        inputs = (source, scale) if bias is None else (source, scale, bias)
        attributes = {"axis": -1, "epsilon": norm.epsilon}
        new = editor.insert_before(last, "LayerNormalization", inputs, attributes, name=f"{last.name}_norm")
        editor.take_over(last, new.outputs[0])
        made.append(new)
    return made


def _is_vector(value: ir.Value | None, norm: Norm) -> bool:
    """Return whether a scale or bias is a constant with one number for each channel."""
    tensor = constant_tensor(value)
    return tensor is not None and tuple(tensor.shape.numpy()) == (norm.size,)
