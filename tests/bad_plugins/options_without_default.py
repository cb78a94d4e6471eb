"""Registers a method with a default that cannot be made."""

from pydantic import BaseModel, ConfigDict, Field

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="options-without-default",
            version="1.0",
            summary="Counts the GPUs.",
            entry="options_without_default:Broken",
            kind=Kind.GRAPH,
            options="options_without_default:Options",
            guarantee=Guarantee.EXACT,
        )
    ]


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(default_factory=lambda: 8 // 0)


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return model.clone()
