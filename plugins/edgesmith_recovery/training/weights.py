"""The weights that are trained: what the optimizer changes, and what the graph computes with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from edgesmith.execution.dtypes import from_tensor, to_tensor
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith_recovery.arithmetic.adapters import start, updated
from edgesmith_recovery.finding.weights import TrainedWeight
from edgesmith_recovery.options.recover import Adapter


@dataclass(frozen=True, slots=True)
class LowRank:
    """How matrices are trained where they are not trained entry by entry."""

    adapter: Adapter
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class _Frozen:
    mask: Tensor
    values: Tensor
    """What stands at the places of the mask, in the order of the weight."""


@dataclass(frozen=True, slots=True)
class _Factored:
    base: Tensor
    left: Tensor
    right: Tensor
    form: LowRank


class TrainedWeights:
    """Parameters of an optimizer, and the weights of a graph that follow from them.

    A float32 weight that is trained entry by entry is the graph's own parameter. One of fewer bits has a float32 copy,
    and a matrix with a low-rank update has two factors; the graph is then called with what they make.

    Args:
        graph: The student. Its parameters get gradients exactly where they are trained.
        weights: What is trained.
        low_rank: How matrices are trained; None for entry by entry.
        seed: Seed of the factors.
    """

    def __init__(
        self, graph: TorchGraph, weights: Sequence[TrainedWeight], low_rank: LowRank | None, seed: int = 0
    ) -> None:
        self._weights = {weight.name: weight for weight in weights}
        self._frozen: dict[str, _Frozen] = {}
        self._halves: dict[str, torch.dtype] = {}
        self._factored: dict[str, _Factored] = {}
        self.leaves: dict[str, Tensor] = {}
        """What the optimizer changes, by name: "W", or "W.left" and "W.right"."""
        generator = torch.Generator().manual_seed(seed)
        parameters = dict(graph.named_parameters())
        graph.requires_grad_(False)
        for weight in weights:
            parameter = parameters[weight.name]
            if weight.frozen is not None:
                mask = torch.from_numpy(weight.frozen).to(parameter.device)
                self._frozen[weight.name] = _Frozen(mask, parameter.detach()[mask])
            if low_rank is not None and weight.role == "matrix":
                self._add_factors(weight, parameter.detach(), low_rank, generator)
            elif parameter.dtype in (torch.float32, torch.float64):
                self.leaves[weight.name] = parameter.requires_grad_()
            else:
                self._halves[weight.name] = parameter.dtype
                self.leaves[weight.name] = parameter.detach().float().requires_grad_()

    @property
    def decaying(self) -> tuple[Tensor, ...]:
        """The leaves that weight decay is for: all but biases and scales."""
        plain = {name for name, weight in self._weights.items() if weight.role in ("bias", "norm")}
        return tuple(leaf for name, leaf in self.leaves.items() if name not in plain)

    def effective(self, *, deployed: bool = False) -> dict[str, Tensor]:
        """Return the weights that the graph must be called with, by name, besides its own parameters.

        Args:
            deployed: As they will be written: without the gradient, and for lora-prune with the zeros back in place.
        """
        with torch.set_grad_enabled(not deployed):
            halves = {name: self.leaves[name].to(dtype) for name, dtype in self._halves.items()}
            return halves | {name: self._with_update(name, deployed) for name in self._factored}

    def clear_frozen_gradients(self) -> None:
        """Set the gradient of frozen entries to zero: it must not count where the length of the gradient does."""
        for name, frozen in self._frozen.items():
            gradient = self.leaves[name].grad if name in self.leaves else None
            if gradient is not None:
                gradient.masked_fill_(frozen.mask, 0.0)

    def keep_frozen(self) -> None:
        """Put frozen entries back after an update, bit for bit: decay moves them without a gradient."""
        with torch.no_grad():
            for name, frozen in self._frozen.items():
                if name in self.leaves:
                    self.leaves[name].masked_scatter_(frozen.mask, frozen.values.to(self.leaves[name].dtype))

    def merged(self) -> dict[str, Tensor]:
        """Return every trained weight as it is to be written."""
        whole = {name: leaf.detach() for name, leaf in self.leaves.items() if name in self._weights}
        return whole | self.effective(deployed=True)

    def copy_leaves(self) -> dict[str, Tensor]:
        """Return a copy of the optimizer's parameters."""
        return {name: leaf.detach().clone() for name, leaf in self.leaves.items()}

    def load_leaves(self, values: Mapping[str, Tensor]) -> None:
        """Take back what `copy_leaves` returned."""
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(values[name])

    def _add_factors(self, weight: TrainedWeight, base: Tensor, low_rank: LowRank, generator: torch.Generator) -> None:
        rows, columns = base.shape[0], base[0].numel()
        rank = min(low_rank.rank, rows, columns)
        left, right = start(
            low_rank.adapter, rows, columns, rank, inputs_are_columns=weight.inputs_last, generator=generator
        )
        factors = left.to(base.device).requires_grad_(), right.to(base.device).requires_grad_()
        self.leaves[f"{weight.name}.left"], self.leaves[f"{weight.name}.right"] = factors
        self._factored[weight.name] = _Factored(base, *factors, low_rank)

    def _with_update(self, name: str, deployed: bool) -> Tensor:
        one = self._factored[name]
        base, adapter = one.base, one.form.adapter
        made = updated(adapter, base.flatten(1).float(), one.left, one.right, one.form.scale)
        weight = made.reshape(base.shape).to(base.dtype)
        frozen = self._frozen.get(name)
        if frozen is None or (adapter == "lora-prune" and not deployed):
            return weight
        return torch.where(frozen.mask, base, weight)


def write_weights(model: ir.Model, weights: Mapping[str, Tensor]) -> ir.Model:
    """Return a copy of a graph with these weights, each in its stored type. What shared a tensor shares the new one."""
    result = model.clone()
    for name, tensor in weights.items():
        source = result.graph.initializers[name].const_value
        if source is None or torch.equal(from_tensor(source).to(tensor.device), tensor):
            continue
        written = to_tensor(tensor, source.dtype, source.name)
        for value in result.graph.initializers.values():
            if value.const_value is source:
                value.const_value = written
    return result
