"""Returns the graph that it was given."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="returns-same-graph",
            version="1.0",
            summary="Returns the graph that it was given.",
            entry="returns_same_graph:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return model
