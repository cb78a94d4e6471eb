"""Crashes in check."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="crash-in-check",
            version="1.0",
            summary="Crashes in check.",
            entry="crash_in_check:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok(nodes=({}["absent"],))

    def apply(self, model, context):
        return model.clone()
