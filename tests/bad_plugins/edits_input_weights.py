"""Writes into the weights of the graph that it was given."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="edits-input-weights",
            version="1.0",
            summary="Writes into the weights of the graph that it was given.",
            entry="edits_input_weights:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        import onnx_ir as ir

        value = model.graph.initializers["up_bias"]
        value.const_value = ir.tensor(value.const_value.numpy() * 2, name=value.name)
        return model.clone()
