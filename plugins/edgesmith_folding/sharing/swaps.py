"""What a network loses when one block runs with the weights of another."""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from edgesmith_folding.running.judge import Judge
from edgesmith_folding.sharing.groups import Sharer

Pair = tuple[int, int]
"""The block whose weights are used, and the block that uses them."""


def swap_costs(
    model: ir.Model, sharers: Mapping[int, Sharer], pairs: frozenset[Pair], judge: Judge
) -> dict[Pair, float]:
    """Return how much the loss rises when a block runs with the weights of another one and norms of its own.

    Blocks that the judge cannot run apart are left out.

    Args:
        model: The graph that the blocks were found in.
        sharers: Its blocks by number.
        pairs: What to try; both blocks of a pair compute the same with other numbers.
        judge: Measures losses of the graph.
    """
    copy = model.clone()

    def others(number: int) -> Iterator[tuple[Pair, ir.Model]]:
        for pair in sorted(pairs):
            if pair[1] == number:
                before = _exchange(copy.graph, sharers[number], sharers[pair[0]])
                yield pair, copy
                for name, tensor in before.items():
                    copy.graph.initializers[name].const_value = tensor

    losses = judge.losses_with(others)
    usual = judge.loss()
    return {pair: loss - usual for pair, loss in losses.items()}


def _exchange(graph: ir.Graph, user: Sharer, owner: Sharer) -> dict[str, ir.TensorProtocol | None]:
    """Give the layers of a block the numbers of another's; return what they held."""
    before = {}
    for mine, theirs in zip(user.linears, owner.linears, strict=True):
        for name, other in ((mine.weight, theirs.weight), (mine.bias, theirs.bias)):
            if name is not None and other is not None and name != other:
                before[name] = graph.initializers[name].const_value
                graph.initializers[name].const_value = graph.initializers[other].const_value
    return before
