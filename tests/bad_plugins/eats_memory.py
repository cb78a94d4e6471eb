"""Takes memory until there is none."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="eats-memory",
            version="1.0",
            summary="Takes memory until there is none.",
            entry="eats_memory:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        taken = []
        while True:
            taken.append(b"x" * (8 << 20))
