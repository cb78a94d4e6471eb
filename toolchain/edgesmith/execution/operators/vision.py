"""Sampling and selecting in images."""

# ruff: noqa: D103 - what each operator means is defined by ONNX

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.operators.registry import UnsupportedFormError, operator, scalar

_GRID_MODES = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "nearest": "nearest",
    "cubic": "bicubic",
    "bicubic": "bicubic",
}


@operator("GridSample", since=16)
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros"
) -> Tensor:
    if x.ndim == 5 and _GRID_MODES[mode] == "bicubic":
        raise UnsupportedFormError("cubic interpolation in volumes")
    return F.grid_sample(x, grid, mode=_GRID_MODES[mode], padding_mode=padding_mode, align_corners=bool(align_corners))


@operator("NonMaxSuppression", since=10, host=("limit", "overlap", "threshold"))
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    limit: Any = None,
    overlap: Any = None,
    threshold: Any = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Return (batch, class, box) of the boxes kept, best first within each class."""
    most, most_overlap, least_score = (scalar(value) for value in (limit, overlap, threshold))
    picked: list[list[int]] = []
    for image in range(boxes.shape[0]):
        corners = _corners(boxes[image], bool(center_point_box))
        for category in range(scores.shape[1]):
            row = scores[image, category]
            order = torch.argsort(row, descending=True, stable=True).tolist()
            if least_score is not None:
                order = [index for index in order if float(row[index]) > least_score]
            kept: list[int] = []
            for index in order:
                if len(kept) >= int(most or 0):
                    break
                if not kept or float(_overlaps(corners[index], corners[kept]).max()) <= (most_overlap or 0.0):
                    kept.append(index)
            picked += [[image, category, index] for index in kept]
    return torch.tensor(picked, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, center: bool) -> Tensor:
    """Return boxes as (low, low, high, high)."""
    if center:
        middle, half = boxes[:, :2], boxes[:, 2:] / 2
        return torch.cat([middle - half, middle + half], 1)
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 1)


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union of one box with each of the others."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(union))
