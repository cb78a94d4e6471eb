"""Activations as rows: what a layer multiplies with its weight at each place, and what it gives there."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.floating]


def input_rows(node: ir.Node, array: Array) -> Array:
    """Return what a layer reads as [rows, inputs], in the order of `finding.weights.as_matrix`.

    A convolution reads one window for each place of its output, images first, zeros beyond the border included; the
    places of the window stand within each channel. Groups stand one behind the other.

    Args:
        node: MatMul, Gemm or Conv.
        array: Its first input.
    """
    if node.op_type == "Conv":
        return _windows(node, array)
    return array.reshape(-1, array.shape[-1])


def output_rows(node: ir.Node, array: Array) -> Array:
    """Return what a layer gives as [rows, outputs], row by row as `input_rows`.

    Args:
        node: MatMul, Gemm or Conv.
        array: Its output, or a value of the same shape behind it.
    """
    if node.op_type == "Conv":
        return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])
    return array.reshape(-1, array.shape[-1])


def token_weights(stream: Array) -> Array:
    """Return how much an error at each token counts: one over its mean square in the residual stream, [rows].

    The next normalization divides by just that. Without it a few tokens of huge norm, such as the first of a text in a
    language model, decide what a layer is fitted to.

    Args:
        stream: The residual sum in the dense network, [rows, width].
    """
    return np.asarray(1 / np.maximum(np.square(stream, dtype=np.float64).mean(axis=1), 1e-12))


def padded(node: ir.Node, array: Array, kernel: Sequence[int]) -> Array:
    """Return an image with the zeros that a convolution sees around it, [images, channels, *places]."""
    rank = len(kernel)
    pads = node.attributes.get_ints("pads", [0] * (2 * rank))
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        strides, dilations = steps(node, rank)
        pads = _same_pads(array.shape[2:], kernel, strides, dilations, larger_first=automatic == "SAME_LOWER")
    elif automatic == "VALID":
        pads = [0] * (2 * rank)
    if not any(pads):
        return array
    return np.pad(array, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])


def steps(node: ir.Node, rank: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return strides and dilations of a convolution."""
    ones = [1] * rank
    return node.attributes.get_ints("strides", ones), node.attributes.get_ints("dilations", ones)


def kernel_of(node: ir.Node) -> tuple[int, ...]:
    """Return the size of a convolution's window."""
    weight = node.inputs[1]
    shape = None if weight is None else weight.shape
    return tuple(int(size) for size in shape[2:]) if shape is not None else ()  # type: ignore[arg-type]


def _windows(node: ir.Node, array: Array) -> Array:
    kernel = kernel_of(node)
    rank = len(kernel)
    strides, dilations = steps(node, rank)
    image = padded(node, array, kernel)
    extents = tuple((size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True))
    views = sliding_window_view(image, extents, axis=tuple(range(2, 2 + rank)))
    places = tuple(slice(None, None, step) for step in (*strides, *dilations))
    views = views[(slice(None), slice(None), *places)]
    # [images, channels, *places, *window] to [images, *places, channels, *window]
    rows = np.moveaxis(views, 1, 1 + rank)
    return rows.reshape(int(np.prod(rows.shape[: 1 + rank])), -1)


def _same_pads(
    lengths: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    *,
    larger_first: bool,
) -> list[int]:
    before, after = [], []
    for length, size, stride, dilation in zip(lengths, kernel, strides, dilations, strict=True):
        total = max((-(-length // stride) - 1) * stride + (size - 1) * dilation + 1 - length, 0)
        small, large = total // 2, total - total // 2
        before.append(large if larger_first else small)
        after.append(small if larger_first else large)
    return before + after
