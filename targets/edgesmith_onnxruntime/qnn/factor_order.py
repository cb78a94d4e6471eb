"""Writes constant factors behind what they multiply.

Qualcomm's compiler joins a root mean square norm that is written out, and fails with QNN_COMMON_ERROR_MEM_ALLOC where
the weight is the first factor, as exporters of language models write it (onnxruntime-qnn 2.7.0, in the simulator).
"""

import onnx_ir as ir

from edgesmith.graph.edit import constant_tensor


def write_factors_second(graph: ir.Graph) -> int:
    """Exchange the inputs of each Mul whose first is constant alone; return how many. Edits `graph`.

    A product is the same in either order, bit for bit, except for the payload of a NaN made of two.
    """
    changed = 0
    for node in graph:
        if node.op_type != "Mul" or node.domain != "":
            continue
        first, second = node.inputs
        if _is_constant(first) and not _is_constant(second):
            node.replace_input_with(0, second)
            node.replace_input_with(1, first)
            changed += 1
    return changed


def _is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is stored: in float, in codes with a stored scale, or in another type that is cast."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.domain == "" and producer.op_type in ("Cast", "DequantizeLinear"):
        return all(_is_constant(each) for each in producer.inputs if each is not None)
    return constant_tensor(value) is not None
