"""Low-rank updates of a weight that may be sparse. Zimmer et al., PERP, arXiv 2312.15230, section 3.

W is [rows, columns], left [rows, rank], right [rank, columns]. Where the paper's A and B stand depends on which side of
the stored weight the inputs are, so `start` is told.
"""

import math

import torch
from torch import Tensor


def start(
    adapter: str, rows: int, columns: int, rank: int, *, inputs_are_columns: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return left and right factors that leave the weight as it is.

    scale-lora starts with all entries 1 / sqrt(rank), so that their product is 1. Where that root is no power of two,
    entries are powers of two near it instead, since only their products add up to 1 exactly. The others start with
    normal numbers of deviation 1 / rank on the side of the inputs (the paper's A) and zeros on the other (B).
    """
    if adapter == "scale-lora":
        root = 2.0 ** round(math.log2(rank) / 2)
        whole = 2 ** math.ceil(math.log2(rank))
        parts = torch.ones(rank)
        parts[: whole - rank] = 2
        return torch.full((rows, rank), 1 / root), (root / whole * parts)[:, None].repeat(1, columns)
    if inputs_are_columns:
        return torch.zeros(rows, rank), torch.randn(rank, columns, generator=generator) / rank
    return torch.randn(rows, rank, generator=generator) / rank, torch.zeros(rank, columns)


def updated(adapter: str, weight: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return the weight with its update, before any mask: W + s L R, or W * (L R) for scale-lora."""
    product = left @ right
    return weight * product if adapter == "scale-lora" else weight + scale * product
