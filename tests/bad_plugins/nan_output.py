"""Makes a graph whose output is NaN."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="nan-output",
            version="1.0",
            summary="Makes a graph whose output is NaN.",
            entry="nan_output:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        import numpy as np
        import onnx_ir as ir

        result = model.clone()
        value = result.graph.initializers["up_bias"]
        value.const_value = ir.tensor(np.full_like(value.const_value.numpy(), np.nan), name=value.name)
        return result
