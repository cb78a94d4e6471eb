"""Prints at every occasion."""
# ruff: noqa: T201  printing is its fault

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl

print("printed at import")


@hookimpl
def register_methods():
    print("printed in a hook")
    return [
        MethodRecord(
            name="prints",
            version="1.0",
            summary="Prints at every occasion.",
            entry="prints:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.EXACT,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        print("printed in check")
        return Verdict.ok()

    def apply(self, model, context):
        print("printed in apply")
        return model.clone()
