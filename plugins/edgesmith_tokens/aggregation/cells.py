"""Cells of a grid of patches: neighbours that are averaged. Arithmetic on shapes, no graph."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Grid:
    """Patches, or cells of patches, in rows from the top left."""

    rows: int
    columns: int

    @property
    def count(self) -> int:
        """Number of places."""
        return self.rows * self.columns


def square_grid(count: int) -> Grid | None:
    """Return the square grid of so many places, or None where the number is no square."""
    side = round(count**0.5)
    return Grid(side, side) if side * side == count else None


def coarser_grid(grid: Grid, count: int, patches: Grid) -> Grid:
    """Return the grid of at most the rows and columns of `grid` that has nearest to `count` places.

    Of several, the one whose cells are nearest to squares of patches; then the one with more rows.

    Args:
        grid: The grid that is made coarser.
        count: Wished number of places, 1 to `grid.count`.
        patches: The grid of patches that the image started with.
    """

    def distance(rows: int, columns: int) -> tuple[int, float, int]:
        height, width = patches.rows / rows, patches.columns / columns
        return abs(rows * columns - count), max(height / width, width / height), -rows

    found = [(rows, columns) for rows in range(1, grid.rows + 1) for columns in _columns(grid, count, rows)]
    return Grid(*min(found, key=lambda sides: distance(*sides)))


def cell_labels(grid: Grid, coarser: Grid) -> Labels:
    """Return the cell of each place: rows and columns are parted as evenly as they go, without overlap.

    Returns:
        Numbers from 0 to `coarser.count` - 1 of shape [grid.count]; each occurs.
    """
    rows = np.arange(grid.rows) * coarser.rows // grid.rows
    columns = np.arange(grid.columns) * coarser.columns // grid.columns
    return np.asarray(rows[:, None] * coarser.columns + columns, np.intp).reshape(-1)


def _columns(grid: Grid, count: int, rows: int) -> tuple[int, ...]:
    """Return the numbers of columns that bring so many rows nearest to `count` places, from below and from above."""
    below = min(max(count // rows, 1), grid.columns)
    return (below, min(below + 1, grid.columns))
