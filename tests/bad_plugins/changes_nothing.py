"""Says that it applies and changes nothing."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="changes-nothing",
            version="1.0",
            summary="Says that it applies and changes nothing.",
            entry="changes_nothing:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.EXACT,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return model.clone()
