"""Crashes in apply, at a node."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="crash-in-apply",
            version="1.0",
            summary="Crashes in apply, at a node.",
            entry="crash_in_apply:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        result = model.clone()
        for node in result.graph:
            if node.op_type == "Relu":
                raise ZeroDivisionError("a channel without weights")
        return result
