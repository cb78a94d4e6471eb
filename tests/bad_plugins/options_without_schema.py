"""Registers a method with an option that no JSON schema can describe."""

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="options-without-schema",
            version="1.0",
            summary="Takes a function.",
            entry="options_without_schema:Broken",
            kind=Kind.GRAPH,
            options="options_without_schema:Options",
            guarantee=Guarantee.EXACT,
        )
    ]


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    function: Callable[[int], int] | None = None


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return model.clone()
