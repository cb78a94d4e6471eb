"""The family for vision transformers: fewer tokens, cheaper attention. Nothing heavy is imported until one is used."""

from collections.abc import Sequence

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import Guarantee, Kind, MethodRecord, Needs, Order

EDGESMITH_API = 1

_ORDER = Order(before=(Kind.QUANTIZE,))

METHODS: tuple[MethodRecord, ...] = (
    MethodRecord(
        name="merge-tokens",
        version="0.1.0",
        summary="Merges tokens of vision transformers that are alike, so that later blocks have fewer to work on.",
        entry="edgesmith_tokens.merge_tokens:MergeTokens",
        kind=Kind.TOKENS,
        options="edgesmith_tokens.options.merging:MergeTokensOptions",
        guarantee=Guarantee.LOSSY,
        order=_ORDER,
        tags=("vision", "tokens"),
        source="Token Merging (ToMe), arXiv 2210.09461",
    ),
    MethodRecord(
        name="static-attention",
        version="0.1.0",
        summary="A constant map in place of attention that hardly looks at the image: no queries, keys or softmax.",
        entry="edgesmith_tokens.static_attention:StaticAttention",
        kind=Kind.TOKENS,
        options="edgesmith_tokens.options.static:StaticAttentionOptions",
        guarantee=Guarantee.LOSSY,
        needs=Needs(data=True),
        order=Order(before=_ORDER.before, after=("merge-tokens", "aggregate-tokens")),
        tags=("vision", "attention"),
        source="DGSSA in Heterogeneous Attention Patterns, arXiv 2310.07664; closed forms of our own",
    ),
    MethodRecord(
        name="aggregate-tokens",
        version="0.1.0",
        summary="Replaces patch tokens of vision transformers by fewer means of them, at chosen blocks.",
        entry="edgesmith_tokens.aggregate_tokens:AggregateTokens",
        kind=Kind.TOKENS,
        options="edgesmith_tokens.options.aggregation:AggregateTokensOptions",
        guarantee=Guarantee.LOSSY,
        order=Order(before=(*_ORDER.before, "merge-tokens")),
        tags=("vision", "tokens"),
        source="GLAD in Heterogeneous Attention Patterns, arXiv 2310.07664; forms of our own",
    ),
)


@hookimpl
def register_methods() -> Sequence[MethodRecord]:
    """Return the methods of this family."""
    return METHODS
