"""Registers a sound method, and observes with a hook that raises."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="copy",
            version="1.0",
            summary="Copies the graph.",
            entry="raises_in_observer:Copy",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.EXACT,
        )
    ]


@hookimpl
def before_step(event):
    raise SystemExit("the logging server is down")


class Copy(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return model.clone()
