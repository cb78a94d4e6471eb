"""Bits per weight: what a model stores for each number of the float model's weights."""

from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.serialization import tensors, weight_bytes


@dataclass(frozen=True, slots=True)
class WeightBits:
    """Turns stored bytes into bits per weight, and back.

    Weights are the floating-point constants of two dimensions or more. What is stored besides (biases, norms, tables
    of integers) counts as it was in the float model; scales, zero points and padding that a format adds count as
    weights, so the float32 model has exactly 32.
    """

    weights: int
    """Number of weights."""
    other_bytes: int
    """Size of everything else in the float model."""

    @classmethod
    def of(cls, model: ir.Model) -> "WeightBits":
        """Return the measure for rewrites of one float model."""
        weights = [tensor for _, tensor in tensors(model) if tensor.dtype.is_floating_point() and len(tensor.shape) > 1]
        count = sum(tensor.size for tensor in weights)
        return cls(count, weight_bytes(model) - sum(tensor.nbytes for tensor in weights))

    def per_weight(self, model: ir.Model) -> float:
        """Return the bits that `model` stores for each weight; 0 for a model without weights."""
        return self.from_bytes(weight_bytes(model))

    def from_bytes(self, stored_bytes: int) -> float:
        """Return the bits per weight of a model whose constants take `stored_bytes`."""
        return 8 * (stored_bytes - self.other_bytes) / self.weights if self.weights else 0.0

    def to_bytes(self, bits_per_weight: float) -> float:
        """Return the size of all constants of a model with that many bits per weight."""
        return self.other_bytes + bits_per_weight * self.weights / 8
