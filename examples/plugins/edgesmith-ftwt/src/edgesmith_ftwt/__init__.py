"""Channels switched image by image as an Edgesmith plugin. This module only says what there is."""

from edgesmith import Guarantee, Kind, MethodRecord, Needs, Order, hookimpl

EDGESMITH_API = 1


@hookimpl
def register_methods() -> list[MethodRecord]:
    """Return the one method of this plugin."""
    return [
        MethodRecord(
            name="gate-channels",
            version="0.1.0",
            summary="An experiment: filters of convolutions chosen for each image by a small predictor.",
            entry="edgesmith_ftwt.method:GateChannels",
            kind=Kind.PRUNE,
            options="edgesmith_ftwt.options:Options",
            guarantee=Guarantee.LOSSY,
            needs=Needs(data=True),
            order=Order(before=(Kind.QUANTIZE,)),
            tags=("experiment", "dynamic"),
            source="Elkerdawy et al. 2022, Fire Together Wire Together, arXiv 2110.08232",
        )
    ]
