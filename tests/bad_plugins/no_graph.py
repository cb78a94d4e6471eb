"""Returns a Model without a graph."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl
from edgesmith.model import Model


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="no-graph",
            version="1.0",
            summary="Returns a Model without a graph.",
            entry="no_graph:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return Model.__new__(Model)
