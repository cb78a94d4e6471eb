"""Equal shares everywhere, and widths that the target's kernels like."""

import math
from collections.abc import Mapping, Sequence

from edgesmith_pruning.finding.records import Kind, Unit


def kept_width(width: int, share: float, tile: int) -> int:
    """Return how many of `width` atoms stay when a share goes: a multiple of `tile`, at least one, never more.

    Never less stays than the share asks for where atoms are counted one by one, so that of three heads none goes for
    a share of 20 %. Otherwise the nearest multiple is taken; a width below the tile is not rounded.

    Args:
        width: Number of atoms in a group.
        share: Share to remove.
        tile: Multiple that what stays should be of.
    """
    wanted = width * (1 - share)
    if tile <= 1 or width <= tile:
        return max(1, min(width, math.ceil(wanted - 1e-9)))
    return min(width, max(tile, tile * round(wanted / tile)))


def uniform_counts(units: Sequence[Unit], shares: Mapping[Kind, float], tile: int) -> dict[str, int]:
    """Return how many atoms each unit loses in each group, by the unit's key.

    Args:
        units: What may be pruned.
        shares: Share to remove by kind.
        tile: Multiple that widths of channels should be of; heads are counted one by one.
    """
    counts = {}
    for unit in units:
        step = 1 if unit.kind in ("heads", "query-heads") else tile
        counts[unit.key] = unit.group_size - kept_width(unit.group_size, shares.get(unit.kind, 0.0), step)
    return counts
