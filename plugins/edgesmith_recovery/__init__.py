"""The recovery family. Registers its method; nothing heavy is imported until it is used."""

from collections.abc import Sequence

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import Guarantee, Kind, MethodRecord, Needs

EDGESMITH_API = 1

METHODS = (
    MethodRecord(
        name="recover",
        version="0.1.0",
        summary="Repairs what lossy steps cost, by learning from the source model; masks and quantizers stay.",
        entry="edgesmith_recovery.recover:Recover",
        kind=Kind.RECOVER,
        options="edgesmith_recovery.options.recover:RecoverOptions",
        guarantee=Guarantee.LOSSY,
        needs=Needs(data=True, gradients=True, packages=("safetensors>=0.4",)),
        tags=("training", "distillation", "qat"),
        source="Zimmer et al. 2023, PERP, arXiv 2312.15230; Hinton et al. 2015, arXiv 1503.02531",
    ),
)


@hookimpl
def register_methods() -> Sequence[MethodRecord]:
    """Return the methods of this family."""
    return METHODS
