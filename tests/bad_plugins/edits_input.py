"""Edits the graph that it was given, and returns a copy."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="edits-input",
            version="1.0",
            summary="Edits the graph that it was given, and returns a copy.",
            entry="edits_input:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        for node in model.graph:
            node.name = f"edited_{node.name}"
        return model.clone()
