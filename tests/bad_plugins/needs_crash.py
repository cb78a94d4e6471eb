"""Registers a method whose options validate and cannot say what they need."""

from pydantic import BaseModel, ConfigDict

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="needs-crash",
            version="1.0",
            summary="Asks for a licence.",
            entry="needs_crash:Broken",
            kind=Kind.GRAPH,
            options="needs_crash:Options",
            guarantee=Guarantee.EXACT,
        )
    ]


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = 0.5

    @property
    def needs(self):
        raise SystemExit("no licence found")


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return model.clone()
