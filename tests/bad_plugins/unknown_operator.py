"""Uses an operator that no runtime knows."""

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="unknown-operator",
            version="1.0",
            summary="Uses an operator that no runtime knows.",
            entry="unknown_operator:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        result = model.clone()
        node = next(node for node in result.graph if node.op_type == "Relu")
        node.domain, node.op_type = "nobody.knows", "Mystery"
        result.ir.opset_imports["nobody.knows"] = 1
        return result
