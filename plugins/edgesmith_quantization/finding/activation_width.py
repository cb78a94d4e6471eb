"""Decides between activations of 8 and of 16 bits, where a target takes both.

Residual streams, softmax and the products between them give the activations of a transformer a few channels that
reach ten to a thousand times farther than the rest. Eight bits for a whole tensor keep too little of the others, while
weights of eight bits keep enough; convolutional networks do well with eight bits for both. The converters of Qualcomm
AI Runtime know the same division (act_bw 16, weight_bw 8).
"""

from dataclasses import replace

import onnx_ir as ir

from edgesmith.graph.attention import FUSED_ATTENTION
from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect
from edgesmith_quantization.options.int8 import QuantizeInt8Options

WIDE_OPSET = 21
"""First ONNX opset whose QuantizeLinear writes 16 bits."""


def width_problem(options: QuantizeInt8Options, dialect: Dialect) -> str:
    """Return why the dialect has no activations of the asked-for width, or an empty string."""
    if options.activation_bits != 16:
        return ""
    if options.mode == "dynamic":
        return "ranges computed at run time have 8 bits; set activation_bits to 8, or mode to static"
    if dialect.wide_activation is None:
        reason = dialect.refusals.get("int16") or f"{dialect.name} multiplies activations of 8 bits in integers, not 16"
        return f"{reason}; set activation_bits to 8"
    if dialect.opset < WIDE_OPSET:
        return f"{dialect.name} reads opset {dialect.opset}, and codes of 16 bits need {WIDE_OPSET}"
    return ""


def with_chosen_width(graph: ir.Graph, context: Context[QuantizeInt8Options]) -> Context[QuantizeInt8Options]:
    """Return the context with the dialect's activations in the width that options or graph ask for."""
    options, dialect = context.options, context.dialect
    if dialect.wide_activation is None or dialect.opset < WIDE_OPSET or options.mode == "dynamic":
        return context
    if options.activation_bits is None and multiplies_activations(graph):
        context.notes.remark(
            "Activations have 16 bits, as the network has attention, in whose activations 8 lose too much. Set "
            "activation_bits to 8 for codes of half the size."
        )
    elif options.activation_bits != 16:
        return context
    return replace(context, dialect=replace(dialect, activation=dialect.wide_activation))


def multiplies_activations(graph: ir.Graph) -> bool:
    """Return whether a graph multiplies matrices of activations with one another, as attention does."""
    constant = set(graph.initializers.values())
    for node in graph:
        known = [value is None or value in constant for value in node.inputs]
        if node.op_type in FUSED_ATTENTION or (node.op_type == "MatMul" and not any(known)):
            return True
        if all(known):
            constant.update(node.outputs)
    return False
