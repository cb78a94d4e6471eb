"""Renames an input of the graph."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="changes-inputs",
            version="1.0",
            summary="Renames an input of the graph.",
            entry="changes_inputs:Broken",
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
        result.graph.inputs[0].name = "renamed"
        return result
