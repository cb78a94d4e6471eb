"""Makes a graph that is not valid ONNX."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="invalid-graph",
            version="1.0",
            summary="Makes a graph that is not valid ONNX.",
            entry="invalid_graph:Broken",
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
        node = next(node for node in result.graph if node.op_type == "Relu")
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
        return result
