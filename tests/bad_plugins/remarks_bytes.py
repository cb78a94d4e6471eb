"""Notes a remark that is no text."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="remarks-bytes",
            version="1.0",
            summary="Notes a remark that is no text.",
            entry="remarks_bytes:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        context.notes.remark(b"done")
        return model.clone()
