"""Returns a weight that fails when it is read."""

import onnx_ir as ir

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="raising-tensor",
            version="1.0",
            summary="Returns a weight that fails when it is read.",
            entry="raising_tensor:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


def read():
    raise OSError("the weights are gone")


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        result = model.clone()
        value = result.graph.initializers["up"]
        value.const_value = ir.LazyTensor(read, dtype=value.dtype, shape=value.shape, name="up")
        return result
