"""Where tokens are aggregated, and what share of them is left there."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.errors import StepError
from edgesmith_tokens.aggregation.cells import Grid, square_grid
from edgesmith_tokens.finding.vision import VisionStream
from edgesmith_tokens.options.aggregation import AggregateTokensOptions


@dataclass(frozen=True, slots=True)
class Place:
    """One step of the pyramid, before a block."""

    block: int
    value: str
    """The stream before the block."""
    share: float
    """Of the patch tokens that arrive there, those that leave it; below 1."""


def find_places(vision: VisionStream, options: AggregateTokensOptions) -> tuple[Place, ...]:
    """Return the places of a stream where tokens become fewer, in the order of the data.

    Raises:
        StepError: There is not one share for each place.
    """
    values = {block.number: block.input for block in vision.blocks}
    if options.at is None:
        blocks: Sequence[int] = _thirds(sorted(values))
    else:
        blocks = sorted(number for number in options.at if number in values)
    shares = _shares(options, blocks)
    return tuple(Place(block, values[block], shares[block]) for block in blocks if shares[block] < 1)


def grid_of(vision: VisionStream, options: AggregateTokensOptions) -> Grid | None:
    """Return the rows and columns of the patches of a stream, or None where they are not known or do not fit."""
    patches = vision.tokens - vision.protected
    given = options.grid or vision.grid
    grid = square_grid(patches) if given is None else Grid(*given)
    return grid if grid is not None and grid.count == patches else None


def keys_before(model: ir.Model, vision: VisionStream, number: int) -> tuple[str, tuple[int, int]] | None:
    """Return the value [batch, tokens, features] with the keys of the block before, and its features that are keys.

    Returns:
        None for the first block, and where the block before has no keys or none that stand together.
    """
    before = next((block for block in vision.blocks if block.number == number - 1), None)
    key = None if before is None else before.attention.key
    if key is None or len(key.features) != 1:
        return None
    shape = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)[key.linear.output].shape
    return (key.linear.output, key.features[0]) if shape is not None and shape.rank() == 3 else None


def _thirds(numbers: Sequence[int]) -> list[int]:
    """Return the blocks at one third and two thirds of the depth, but not the first one."""
    wanted = {max(round(len(numbers) * part / 3), 1) for part in (1, 2)}
    return [numbers[index] for index in sorted(wanted) if index < len(numbers)]


def _shares(options: AggregateTokensOptions, blocks: Sequence[int]) -> dict[int, float]:
    if not isinstance(options.keep, tuple):
        return dict.fromkeys(blocks, options.keep)
    if options.at is not None:
        return dict(zip(options.at, options.keep, strict=True))
    if len(blocks) != len(options.keep):
        raise StepError(
            f"keep has {len(options.keep)} shares for {len(blocks)} places",
            expected="one share for each place",
            why="the stream has too few blocks for places at one third and two thirds of its depth",
            fix="name the blocks with the option at, or give one share",
        )
    return dict(zip(blocks, options.keep, strict=True))
