"""Returns another type of output."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="changes-output-type",
            version="1.0",
            summary="Returns another type of output.",
            entry="changes_output_type:Broken",
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

        result = model.clone()
        old = result.graph.outputs[0]
        cast = ir.node("Cast", [old], {"to": ir.DataType.FLOAT16}, name="to_half")
        old.name, cast.outputs[0].name = "y_float", "y"
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT16), old.shape
        result.graph.append(cast)
        result.graph.outputs[0] = cast.outputs[0]
        return result
