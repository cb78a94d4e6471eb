"""Low-rank factorisation as an Edgesmith plugin. This module only says what there is; it imports nothing heavy."""

from edgesmith import Guarantee, Kind, MethodRecord, Needs, Order, hookimpl

EDGESMITH_API = 1


@hookimpl
def register_methods() -> list[MethodRecord]:
    """Return the one method of this plugin."""
    return [
        MethodRecord(
            name="factorise-low-rank",
            version="0.1.0",
            summary="Two thin matrices in place of one, where that saves work; chosen by what inputs really hold.",
            entry="edgesmith_lowrank.method:FactoriseLowRank",
            kind=Kind.LOW_RANK,
            options="edgesmith_lowrank.options:Options",
            guarantee=Guarantee.LOSSY,
            needs=Needs(data=True),
            order=Order(before=(Kind.QUANTIZE,)),
            tags=("svd",),
            source="Wang et al. 2024, SVD-LLM, arXiv 2403.07378, section 3.2",
        )
    ]
