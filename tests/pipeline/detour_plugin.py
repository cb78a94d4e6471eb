"""A plugin that costs something and gains nothing: it negates each output twice, also under the name of a recovery."""

from pydantic import BaseModel

import edgesmith


class Options(BaseModel):
    """No options."""


class Detour(edgesmith.Method[Options]):
    """Appends two Neg nodes to the first output."""

    def check(self, model: edgesmith.Model, context: edgesmith.Context[Options]) -> edgesmith.Verdict:
        """Always applies."""
        return edgesmith.Verdict.ok()

    def apply(self, model: edgesmith.Model, context: edgesmith.Context[Options]) -> edgesmith.Model:
        """Return the model with a detour before its first output."""
        import onnx_ir as ir

        copy = model.clone()
        output = copy.graph.outputs[0]
        place = len(copy.graph)
        first = ir.node("Neg", [output], name=f"detour_{place}")
        second = ir.node("Neg", [first.outputs[0]], name=f"detour_{place + 1}")
        copy.graph.extend([first, second])
        final = second.outputs[0]
        final.shape, final.type, final.name, output.name = output.shape, output.type, output.name, f"before_{place}"
        first.outputs[0].name = f"in_{place}"
        copy.graph.outputs[0] = final
        return copy


@edgesmith.hookimpl
def register_methods() -> list[edgesmith.MethodRecord]:
    """Return the method under both names."""
    return [
        edgesmith.MethodRecord(
            name=name,
            version="1",
            summary="Negates the output twice.",
            entry=f"{__name__}:Detour",
            kind=kind,
            options=f"{__name__}:Options",
            guarantee=edgesmith.Guarantee.EXACT,
        )
        for name, kind in (("detour", edgesmith.Kind.GRAPH), ("make-good", edgesmith.Kind.RECOVER))
    ]
