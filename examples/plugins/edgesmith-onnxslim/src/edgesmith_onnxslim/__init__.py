"""onnxslim as an Edgesmith plugin. This module only says what there is; onnxslim is imported when it is used."""

from edgesmith import Guarantee, Kind, MethodRecord, Needs, Order, hookimpl

EDGESMITH_API = 1


@hookimpl
def register_methods() -> list[MethodRecord]:
    """Return the one method of this plugin."""
    return [
        MethodRecord(
            name="slim-graph",
            version="0.1.0",
            summary="Fewer nodes for the same numbers: folds, fuses and removes with onnxslim.",
            entry="edgesmith_onnxslim.method:SlimGraph",
            kind=Kind.GRAPH,
            options="edgesmith_onnxslim.options:Options",
            guarantee=Guarantee.EXACT,
            needs=Needs(packages=("onnxslim>=0.1.90,<0.2",)),
            order=Order(before=(Kind.QUANTIZE,)),
            tags=("cleanup",),
            source="https://github.com/inisis/OnnxSlim",
        )
    ]
