"""Answers a check with a bare bool."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="bool-verdict",
            version="1.0",
            summary="Answers True.",
            entry="bool_verdict:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return True

    def apply(self, model, context):
        return model.clone()
