"""Losses."""

# ruff: noqa: D103 - what each operator means is defined by ONNX

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.operators.registry import operator

_NO_CLASS = -(2**31)


@operator("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = _NO_CLASS,
    reduction: str = "mean",
) -> Tensor:
    return F.nll_loss(x, target.to(torch.int64), weight, ignore_index=ignore_index, reduction=reduction)


@operator("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = _NO_CLASS,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    log_probability = torch.log_softmax(scores, 1)
    loss = negative_log_likelihood(log_probability, labels, weight, ignore_index=ignore_index, reduction=reduction)
    return loss, log_probability
