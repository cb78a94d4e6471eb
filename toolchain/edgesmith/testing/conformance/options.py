"""Values to try for an option, from its JSON schema."""

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_STEP = 1e-3
"""Distance from a bound that an option may not take itself, relative where the bound is above 1."""


def edge_values(schema: Schema) -> list[object]:
    """Return the values at the edges of what a schema takes: limits, every choice, both truths, the empty list."""
    return _without_repeats(_edges(schema))


def values_beyond(schema: Schema) -> list[object]:
    """Return values just outside the limits of a number, none where it has no limits or is one of several types."""
    if "anyOf" in schema:
        return []
    beyond: list[object] = []
    if "minimum" in schema:
        beyond.append(schema["minimum"] - 1)
    if "maximum" in schema:
        beyond.append(schema["maximum"] + 1)
    return beyond + [schema[key] for key in ("exclusiveMinimum", "exclusiveMaximum") if key in schema]


def takes_anything(schema: Schema) -> bool:
    """Return whether a schema says nothing about the type."""
    return not {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"} & set(schema)


def wrong_value(schema: Schema) -> object:
    """Return a value of a type that the schema does not take."""
    kinds = {one.get("type") for one in schema.get("anyOf", [schema])}
    return ["a", ["list"], "of", {"things": 1}] if "object" in kinds else {"a": "mapping"}


def _edges(schema: Schema) -> Iterator[object]:
    for choice in schema.get("anyOf", ()):
        yield from _edges(choice)
    yield from schema.get("enum", ())
    if "const" in schema:
        yield schema["const"]
    kind = schema.get("type")
    if kind == "boolean":
        yield from (False, True)
    elif kind == "null":
        yield None
    elif kind in ("integer", "number"):
        yield from (schema[key] for key in ("minimum", "maximum") if key in schema)
        if "exclusiveMinimum" in schema:
            yield _inside(schema["exclusiveMinimum"], kind, 1)
        if "exclusiveMaximum" in schema:
            yield _inside(schema["exclusiveMaximum"], kind, -1)
    elif kind == "array":
        if not schema.get("minItems"):
            yield []
        if schema.get("minItems", 0) <= 1:
            yield from ([value] for value in schema.get("items", {}).get("enum", ()))


def _inside(bound: float, kind: str, direction: int) -> float:
    return bound + direction * (1 if kind == "integer" else _STEP * max(1.0, abs(bound)))


def _without_repeats(values: Iterator[object]) -> list[object]:
    found: list[object] = []
    for value in values:
        # 1 and True are equal, and not the same option.
        if not any(value == other and type(value) is type(other) for other in found):
            found.append(value)
    return found
