"""Activations as rows: what a layer multiplies with its weight at each place, and what it gives there."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[np.floating]


def input_rows(node: ir.Node, array: Array) -> Array:
    """Return what a layer reads as [rows, inputs], in the order of `finding.weights.as_matrix`.

    Args:
        node: MatMul, Gemm or Conv.
        array: Its first input.
    """
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
