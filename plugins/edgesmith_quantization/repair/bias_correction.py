"""Takes back the shift that rounding a weight gives to the mean of each output, in closed form.

A rounded weight `W + D` adds `D E[x]` to the mean of the outputs. Few numbers make an output of a depthwise
convolution, so their rounding errors do not cancel, and the shift is a large part of the noise of such networks.
Source: Nagel et al. 2019, arXiv 1906.04721, section 4.2; `E[x]` is measured on calibration data instead of derived.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor, constant_tensor, constant_value
from edgesmith_quantization.arithmetic.rounding import dequantize
from edgesmith_quantization.finding.candidates import Candidate
from edgesmith_quantization.forms.weights import WeightStore, constant_array
from edgesmith_quantization.repair.smoothing import Float64


def rounding_shift(difference: NDArray[np.float32], mean: Float64) -> Float64:
    """Return by how much rounding shifts the mean of each output, [outputs].

    Args:
        difference: Rounded weight minus weight, [groups, outputs per group, channels per group, taps].
        mean: Mean of each channel, [channels]. Places beyond the border of an image count like those within.
    """
    per_channel = difference.sum(axis=3, dtype=np.float64)
    shift: Float64 = np.einsum("goc,gc->go", per_channel, mean.reshape(len(per_channel), -1)).reshape(-1)
    return shift


def correct_biases(
    editor: GraphEditor, candidates: Sequence[Candidate], store: WeightStore, means: Mapping[str, Float64]
) -> tuple[Candidate, ...]:
    """Return the candidates with corrected biases. Products without a bias stay as they are.

    A MatMul has none of its own; what an Add behind it adds to each row counts as its bias.

    Args:
        editor: Editor of the graph; the corrected biases are added to it.
        candidates: Products that will be quantized.
        store: Gives their rounded weights.
        means: Mean of each channel by name of an activation. Others are not corrected.
    """
    corrected = []
    for candidate in candidates:
        mean = means.get(str(candidate.activation.name))
        corrected.append(candidate if mean is None else _corrected(editor, candidate, store, mean))
    return tuple(corrected)


def _corrected(editor: GraphEditor, candidate: Candidate, store: WeightStore, mean: Float64) -> Candidate:
    place = _bias_place(candidate)
    if place is None:
        return candidate
    node, index = place
    bias, weight = constant_value(node.inputs[index]), constant_array(candidate.weight)
    if bias is None:
        return candidate
    stored = store.weight(candidate)
    codes, zero_point = constant_array(stored.codes), constant_array(stored.zero_point)
    rounded = dequantize(codes, stored.scale_array, zero_point, stored.axis)
    shift = rounding_shift(grouped(candidate, rounded - weight), mean)
    value = editor.add_initializer(f"{candidate.name}_bias_corrected", (bias - shift).astype(np.float32))
    node.replace_input_with(index, value)
    return replace(candidate, bias=value) if node is candidate.node else candidate


def _bias_place(candidate: Candidate) -> tuple[ir.Node, int] | None:
    """Return the node and input that hold the bias of a product: its own, or those of the Add behind a MatMul."""
    if candidate.bias is not None:
        return candidate.node, 2
    uses = tuple(candidate.node.outputs[0].uses())
    if candidate.node.op_type != "MatMul" or candidate.transposed or len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    index = 1 - uses[0].idx
    tensor = constant_tensor(uses[0].node.inputs[index])
    channels = candidate.weight.shape[candidate.channel_axis] if candidate.weight.shape is not None else None
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or list(tensor.shape.numpy()) != [channels]:
        return None
    return uses[0].node, index


def grouped(candidate: Candidate, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weight of a product as [groups, outputs per group, channels per group, taps]."""
    if candidate.node.op_type != "Conv":
        matrix = weight if candidate.channel_axis == 0 else weight.T
        return matrix[None, :, :, None]
    groups = candidate.node.attributes.get_int("group", 1)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
