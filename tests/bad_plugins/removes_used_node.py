"""Removes a node that another one reads."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="removes-used-node",
            version="1.0",
            summary="Removes a node that another one reads.",
            entry="removes_used_node:Broken",
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
        result.graph.remove(result.graph[0])
        return result
