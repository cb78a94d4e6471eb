"""Promises an equal output and doubles it."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="breaks-guarantee",
            version="1.0",
            summary="Promises an equal output and doubles it.",
            entry="breaks_guarantee:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.EXACT,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        import onnx_ir as ir

        result = model.clone()
        for name in ("down", "down_bias"):
            value = result.graph.initializers[name]
            value.const_value = ir.tensor(value.const_value.numpy() * 2, name=name)
        return result
