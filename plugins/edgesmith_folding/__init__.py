"""The folding family: fewer blocks, or blocks that share weights. Nothing heavy is imported until one is used."""

from collections.abc import Sequence

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import Guarantee, Kind, MethodRecord, Needs, Order

EDGESMITH_API = 1

_ORDER = Order(before=(Kind.QUANTIZE,))

METHODS = (
    MethodRecord(
        name="remove-blocks",
        version="0.1.0",
        summary="Removes blocks that change the residual stream least; a least-squares map makes up for them.",
        entry="edgesmith_folding.remove_blocks:RemoveBlocks",
        kind=Kind.FOLD,
        options="edgesmith_folding.options.removal:RemoveBlocksOptions",
        guarantee=Guarantee.LOSSY,
        needs=Needs(data=True),
        order=_ORDER,
        tags=("depth", "blocks"),
        drops_caches=True,
        source="ShortGPT, arXiv 2403.03853; Deeper Layers, arXiv 2403.17887; SLEB, arXiv 2402.09025",
    ),
    MethodRecord(
        name="share-blocks",
        version="0.1.0",
        summary="Neighbouring blocks use one set of weights, which is stored once; norms stay private.",
        entry="edgesmith_folding.share_blocks:ShareBlocks",
        kind=Kind.FOLD,
        options="edgesmith_folding.options.sharing:ShareBlocksOptions",
        guarantee=Guarantee.LOSSY,
        needs=Needs(data=True),
        order=_ORDER,
        tags=("depth", "size"),
        source="FoldGPT, arXiv 2407.00928; Relaxed Recursive Transformers, arXiv 2410.20672",
    ),
)


@hookimpl
def register_methods() -> Sequence[MethodRecord]:
    """Return the methods of this family."""
    return METHODS
