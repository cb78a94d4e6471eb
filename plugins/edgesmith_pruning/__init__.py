"""The pruning family. Registers its methods; nothing heavy is imported until one of them is used."""

from collections.abc import Sequence

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import Guarantee, Kind, MethodRecord, Needs, Order

EDGESMITH_API = 1

_ORDER = Order(before=(Kind.QUANTIZE,))

METHODS = (
    MethodRecord(
        name="prune-structure",
        version="0.1.0",
        summary="Removes attention heads and channels, refits what reads them. Smaller dense matrices, no training.",
        entry="edgesmith_pruning.prune_structure:PruneStructure",
        kind=Kind.PRUNE,
        options="edgesmith_pruning.options.structure:PruneStructureOptions",
        guarantee=Guarantee.LOSSY,
        needs=Needs(data=True),
        order=_ORDER,
        tags=("structured", "heads", "channels"),
        source="Output approximation, arXiv 2407.19126, sections 3 and 4; FLAP, arXiv 2312.11983",
    ),
    MethodRecord(
        name="prune-weights",
        version="0.1.0",
        summary="Sets single weights to zero, anywhere or in groups such as 2:4; the others make up for them.",
        entry="edgesmith_pruning.prune_weights:PruneWeights",
        kind=Kind.PRUNE,
        options="edgesmith_pruning.options.weights:PruneWeightsOptions",
        guarantee=Guarantee.LOSSY,
        needs=Needs(data=True),
        order=_ORDER,
        tags=("unstructured", "2:4", "sparse"),
        source="Adaptive knowledge retention, arXiv 2310.13191, section 4; SparseGPT, arXiv 2301.00774",
    ),
    MethodRecord(
        name="analyse-units",
        version="0.1.0",
        summary="Finds heads and channels behind an attribute, and protects them from the steps that follow.",
        entry="edgesmith_pruning.analyse_units:AnalyseUnits",
        kind=Kind.ANALYSE,
        options="edgesmith_pruning.options.units:AnalyseUnitsOptions",
        guarantee=Guarantee.EXACT,
        needs=Needs(data=True),
        order=_ORDER,
        tags=("roles", "protection"),
        source="Superficial Safety Alignment Hypothesis, arXiv 2410.10862, section 4",
    ),
)


@hookimpl
def register_methods() -> Sequence[MethodRecord]:
    """Return the methods of this family."""
    return METHODS
