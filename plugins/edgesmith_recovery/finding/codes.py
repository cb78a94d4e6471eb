"""Weights that are stored as codes: as floats in front of their quantizer while they are trained, as codes again after.

A code c with scale s stands for the float c * s, and rounding that float gives c again. So a weight that training
leaves alone gets its own codes back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.edit import GraphEditor, set_initializer

_QUANTIZABLE = frozenset(
    getattr(ir.DataType, name) for name in ("INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16")
)


@dataclass(frozen=True, slots=True)
class Thawed:
    """A graph in which weights that were codes are floats."""

    model: ir.Model
    rounded: Mapping[str, str]
    """Name of the stored codes to the value that makes them of floats."""
    biases: Mapping[str, str]
    """Name of stored 32-bit codes to the float initializer that stands for them. They are too fine to need rounding."""


def thaw(model: ir.Model) -> Thawed:
    """Return a copy that computes the same, in which dequantized weights are floats that pass through their quantizer.

    Codes that something else than one DequantizeLinear reads, as tables and integer operators do, stay.
    """
    result = model.clone()
    found = [node for node in result.graph if _reads_own_codes(node)]
    floats = _computed(model, [node.outputs[0].name or "" for node in found])
    editor = GraphEditor(result.graph)
    rounded, biases = {}, {}
    for node in found:
        codes, scale = node.inputs[0], node.inputs[1]
        if codes is None or scale is None or codes.const_value is None or codes.name is None:
            continue
        weight = editor.add_initializer(f"{codes.name}_float", floats[node.outputs[0].name or ""])
        if codes.const_value.dtype == ir.DataType.INT32:
            biases[codes.name] = str(weight.name)
            editor.replace_uses(node.outputs[0], weight)
            continue
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is None:
            shape = () if scale.const_value is None else tuple(scale.const_value.shape.numpy())
            zeros = np.zeros(shape, codes.const_value.dtype.numpy())
            zero = editor.add_initializer(f"{codes.name}_zero", zeros, codes.const_value.dtype)
        names = ("axis", "block_size")
        attributes = {name: node.attributes[name].as_int() for name in names if name in node.attributes}
        rounding = editor.insert_before(
            node, "QuantizeLinear", [weight, scale, zero], attributes, name=f"{codes.name}_rounded"
        )
        node.replace_input_with(0, rounding.outputs[0])
        rounded[codes.name] = rounding.outputs[0].name or ""
    return Thawed(result, rounded, biases)


def refreeze(model: ir.Model, trained: ir.Model, thawed: Thawed) -> ir.Model:
    """Return `model` with the weights of `trained`, codes where it has codes.

    Args:
        model: The graph that was thawed.
        trained: The thawed graph with other weights.
        thawed: What `thaw` returned.
    """
    result = model.clone()
    codes = _computed(trained, list(thawed.rounded.values()))
    for name, value in result.graph.initializers.items():
        old = value.const_value
        if old is None:
            continue
        if name in thawed.rounded:
            set_initializer(value, codes[thawed.rounded[name]], old.dtype)
        elif name in thawed.biases:
            set_initializer(value, _bias_codes(result.graph, value, trained, thawed.biases[name]))
        else:
            value.const_value = trained.graph.initializers[name].const_value
    return result


def _reads_own_codes(node: ir.Node) -> bool:
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return False
    codes, scale = node.inputs[0], node.inputs[1]
    if codes is None or scale is None or codes.const_value is None or not codes.is_initializer():
        return False
    if len(codes.uses()) != 1 or codes.is_graph_output() or codes.is_graph_input() or scale.const_value is None:
        return False
    dtype = codes.const_value.dtype
    return dtype in _QUANTIZABLE or (dtype == ir.DataType.INT32 and not node.outputs[0].is_graph_output())


def _computed(model: ir.Model, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return values that depend on no input."""
    if not names:
        return {}
    part = ir.convenience.extract(model.graph, inputs=[], outputs=list(names))
    whole = ir.Model(part, ir_version=model.ir_version, functions=list(model.functions.values()))
    return ReferenceSession(whole, optimization="disabled").run({})


def _bias_codes(graph: ir.Graph, codes: ir.Value, trained: ir.Model, name: str) -> NDArray[np.int32]:
    """Return a bias in 32-bit codes; their scale is one number or one per channel, and they have no zero point."""
    (use,) = codes.uses()
    scale = use.node.inputs[1]
    bias = trained.graph.initializers[name].const_value
    if scale is None or scale.const_value is None or bias is None:  # as `thaw` found them
        raise ValueError(name)
    steps = np.rint(bias.numpy().astype(np.float64) / scale.const_value.numpy().astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(steps, limits.min, limits.max).astype(np.int32)
