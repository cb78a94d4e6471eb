"""Stores quantized weights and biases in a graph, each constant once however many products share it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith.mapped import release_array
from edgesmith_quantization.arithmetic.blocks import BlockGrid
from edgesmith_quantization.arithmetic.rounding import (
    Float,
    bias_safe_scale,
    quantize,
    symmetric_scale,
    with_free_scales,
)
from edgesmith_quantization.arithmetic.second_order import round_second_order
from edgesmith_quantization.finding.candidates import Candidate

_Key = tuple[ir.Value, int]


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """The initializers of one quantized weight."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    axis: int | None
    """Dimension that the scales belong to; None for one scale."""
    scale_array: Float


class WeightStore:
    """Quantizes weights on demand and remembers them.

    Args:
        editor: Editor of the graph that receives the codes.
        candidates: All products that will be quantized; those that share a weight share its scales.
        per_channel: One scale per output channel instead of one per weight.
        reduce_range: Use 7 bits instead of 8.
        activation_scales: Scale of each activation, where biases are stored in int32.
        grams: Gram matrix of what multiplies a weight [inputs, inputs], by name of the activation. Weights that have
            one are rounded to least output error, others to nearest.
    """

    def __init__(
        self,
        editor: GraphEditor,
        candidates: Sequence[Candidate],
        *,
        per_channel: bool,
        reduce_range: bool,
        activation_scales: Mapping[ir.Value, np.float32] | None = None,
        grams: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> None:
        self._editor = editor
        self._per_channel = per_channel
        self._bits = 7 if reduce_range else 8
        self._largest_code = (1 << self._bits - 1) - 1
        self._grams = grams or {}
        self._activation_scales = activation_scales or {}
        self._sharers: dict[_Key, list[Candidate]] = {}
        for candidate in candidates:
            self._sharers.setdefault((candidate.weight, candidate.channel_axis), []).append(candidate)
        self._stored: dict[tuple[_Key, bool], StoredWeight] = {}

    def weight(self, candidate: Candidate, *, transpose: bool = False) -> StoredWeight:
        """Return the stored weight of a product, transposed if asked (2-D weights only)."""
        key = (candidate.weight, candidate.channel_axis), transpose
        if key not in self._stored:
            self._stored[key] = self._store(candidate, transpose)
        return self._stored[key]

    def bias(self, candidate: Candidate, weight: StoredWeight, activation_scale: np.float32) -> ir.Value | None:
        """Return the dequantized int32 bias of a product, or None if it has none."""
        if candidate.bias is None:
            return None
        values = constant_array(candidate.bias)
        scale = weight.scale_array * activation_scale
        codes = np.rint(values.astype(np.float64) / scale).astype(np.int32)
        base = f"{candidate.name}_bias"
        zero_point = np.zeros(scale.shape, np.int32)
        inputs = [
            self._editor.add_initializer(f"{base}_{part}", array)
            for part, array in (("quantized", codes), ("scale", scale), ("zero_point", zero_point))
        ]
        attributes = None if weight.axis is None else {"axis": 0}
        return self._editor.insert_before(
            candidate.node, "DequantizeLinear", inputs, attributes, name=f"{base}_dequantize"
        ).outputs[0]

    def _store(self, candidate: Candidate, transpose: bool) -> StoredWeight:
        values = constant_array(candidate.weight)
        axis = candidate.channel_axis if self._per_channel else None
        scale = symmetric_scale(values, self._largest_code, axis)
        if axis is not None and self._activation_scales:
            others = tuple(each for each in range(values.ndim) if each != axis)
            scale = with_free_scales(scale, np.asarray(~values.any(axis=others)))
        for sharer in self._sharers[candidate.weight, candidate.channel_axis]:
            activation_scale = self._activation_scales.get(sharer.activation)
            if sharer.bias is not None and activation_scale is not None:
                bias = constant_array(sharer.bias)
                scale = bias_safe_scale(scale, activation_scale, bias if axis is not None else np.abs(bias).max())
        zero_point = np.zeros(scale.shape, np.int8)
        codes = self._round(candidate, values, scale, axis)
        release_array(values)
        if transpose:
            codes, axis = np.ascontiguousarray(codes.T), None if axis is None else 1 - axis
        stem = candidate.weight.name or candidate.name
        parts = (("quantized", codes), ("scale", scale), ("zero_point", zero_point))
        stored = [self._editor.add_initializer(f"{stem}_{part}", array) for part, array in parts]
        return StoredWeight(stored[0], stored[1], stored[2], axis, scale)

    def _round(self, candidate: Candidate, values: Float, scale: Float, axis: int | None) -> NDArray[np.int8]:
        """Return the codes of a weight: of least output error where Gram matrices are known, else to nearest."""
        sharers = self._sharers[candidate.weight, candidate.channel_axis]
        grams = [self._grams.get(str(sharer.activation.name)) for sharer in sharers]
        present = [gram for gram in grams if gram is not None]
        if axis is None or values.ndim != 2 or len(present) < len(grams):
            return quantize(values, scale, np.zeros(scale.shape, np.int8), axis)
        rows = values if axis == 0 else values.T
        grid = BlockGrid(scale[:, None], None, self._bits, rows.shape[1])
        codes = round_second_order(rows, sum(present[1:], present[0]), grid).codes
        # Exact zeros stay zero, and the one code that has no counterpart above zero is never used.
        codes = np.where(rows == 0, 0, np.maximum(codes, -self._largest_code)).astype(np.int8)
        return np.ascontiguousarray(codes if axis == 0 else codes.T)


def constant_array(value: ir.Value) -> NDArray[Any]:
    """Return the data of a value that is known to be constant."""
    array = constant_value(value)
    if array is None:
        raise ValueError(f"{value.name} is not constant")  # candidates hold constants only
    return array
