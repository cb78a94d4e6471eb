"""How many tokens each block merges. Counts are cut to what a block can take (`most_merged`)."""

from collections.abc import Sequence

from edgesmith_tokens.merging.formula import most_merged


def constant(r: int, blocks: int) -> tuple[int, ...]:
    """Return r for every block."""
    return (r,) * blocks


def decreasing(r: int, blocks: int) -> tuple[int, ...]:
    """Return counts that fall linearly from 2 r to 0, so that their mean is r, rounded down.

    Bolya et al. 2023, arXiv 2210.09461, section 4.1.
    """
    return tuple(int(2 * r - 2 * r * block / max(1, blocks - 1)) for block in range(blocks))


def spread(total: int, blocks: int) -> tuple[int, ...]:
    """Return counts that sum to a total and differ by one at most."""
    return tuple(total * (block + 1) // blocks - total * block // blocks for block in range(blocks))


def shared_out(total: int, blocks: int, tokens: int, protected: int) -> tuple[int, ...]:
    """Return counts that sum to a total, or to all that blocks can merge, in parts as equal as they have room for."""
    total = min(total, sum(fitted(constant(tokens, blocks), tokens, protected)))
    wanted = total
    # What late blocks cannot take goes to earlier ones.
    while sum(counts := fitted(spread(wanted, blocks), tokens, protected)) < total:
        wanted += 1
    return counts


def listed(counts: Sequence[int], blocks: int) -> tuple[int, ...]:
    """Return a list of counts, filled up with 0 for further blocks."""
    return (*counts[:blocks], *[0] * (blocks - len(counts)))


def fitted(counts: Sequence[int], tokens: int, protected: int) -> tuple[int, ...]:
    """Return counts cut to what each block can merge of what the blocks before it leave."""
    result = []
    for count in counts:
        result.append(min(count, most_merged(tokens, protected)))
        tokens -= result[-1]
    return tuple(result)
