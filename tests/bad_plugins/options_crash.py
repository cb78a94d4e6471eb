"""Registers a method whose options crash where they are validated."""

from pydantic import BaseModel, ConfigDict, model_validator

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="options-crash",
            version="1.0",
            summary="Asks for a licence.",
            entry="options_crash:Broken",
            kind=Kind.GRAPH,
            options="options_crash:Options",
            guarantee=Guarantee.EXACT,
        )
    ]


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = 0.5

    @model_validator(mode="after")
    def ask_for_a_licence(self):
        raise SystemExit("no licence found")


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return model.clone()
