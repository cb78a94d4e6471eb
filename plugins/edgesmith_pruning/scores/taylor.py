"""Taylor scores: by how much the loss would change, to first order, with a channel at zero."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgesmith.execution.torch_graph import TorchGraph

if TYPE_CHECKING:
    from edgesmith_calibration.sources import Batch

Float64 = NDArray[np.float64]


def first_order(values: Tensor, gradients: Tensor, axis: int) -> Tensor:
    """Return (sum over places of x g)^2 for each channel, summed over samples: [channels].

    The change of the loss is -x g to first order; its square is averaged, since changes of both signs hurt
    (Molchanov et al. 2019, arXiv 1906.10771, equation 8).

    Args:
        values: x, samples first.
        gradients: Of the loss in x, same shape.
        axis: Axis of the channels.
    """
    products = (values * gradients).movedim(axis, 1)
    return products.flatten(2).sum(2).square().sum(0) if products.dim() > 2 else products.square().sum(0)


def label_loss(logits: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return the summed cross entropy with the labels, or with labels drawn from the model's own distribution.

    Drawn labels make the mean square of the gradient the Fisher information, which needs no labelled data.

    Args:
        logits: [samples, ..., classes].
        labels: One class for each sample, or None.
        generator: Draws labels.
    """
    flat = logits.flatten(0, -2)
    if labels is None or labels.numel() != len(flat):
        labels = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator).squeeze(1)
    return functional.cross_entropy(flat, labels.reshape(-1), reduction="sum")


def taylor_scores(
    graph: TorchGraph, axes: Mapping[str, int], batches: "Iterator[Batch]", seed: int
) -> dict[str, Float64]:
    """Return a score for each channel of each value, by the value's name.

    Args:
        graph: The network.
        axes: Axis of the channels of each value.
        batches: Calibration data.
        seed: Seed of drawn labels.
    """
    generator = torch.Generator().manual_seed(seed)
    names: Sequence[str] = list(axes)
    sums: dict[str, Float64] = {}
    for batch in batches:
        inputs = {name: torch.from_numpy(np.asarray(array)) for name, array in batch.inputs.items()}
        found = graph(inputs, names)
        logits = next(value for name, value in found.items() if name not in axes)
        labels = None if batch.labels is None else torch.from_numpy(np.asarray(batch.labels).astype(np.int64))
        gradients = torch.autograd.grad(label_loss(logits, labels, generator), [found[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            score = first_order(found[name].detach(), gradient, axes[name]).double().numpy()
            sums[name] = sums.get(name, 0.0) + score
    return sums
