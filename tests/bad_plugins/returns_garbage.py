"""Returns a graph where a Model belongs."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="returns-garbage",
            version="1.0",
            summary="Returns a graph where a Model belongs.",
            entry="returns_garbage:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return model.clone().ir
