"""Checks the options of a recipe step against the method's own pydantic model, with words a user can act on."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from edgesmith.errors import RecipeError
from edgesmith.files import hash_directory, hash_file
from edgesmith.host.brief import brief
from edgesmith.host.names import suggest


class NoOptions(BaseModel):
    """The options of a method that has none: "edgesmith.host.options:NoOptions"."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def validate_options(method: str, model: type[BaseModel], options: Mapping[str, object]) -> BaseModel:
    """Return `options` as an instance of `model`, with defaults filled in.

    Raises:
        RecipeError: An option is unknown, missing or outside its range.
    """
    allowed = option_schemas(model)
    if model.model_config.get("extra") != "allow":
        for name in options:
            if name not in allowed:
                raise RecipeError(
                    f"method {method!r} has no option {name!r}",
                    expected=f"options among {', '.join(allowed) or '(none)'}",
                    why="An option that is not understood would silently do nothing.",
                    fix=f"{suggest(name, allowed)} `edgesmith methods {method}` says what each sets.",
                )
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise _explain(method, allowed, error) from error


def hash_named_files(options: BaseModel) -> dict[str, str]:
    """Return the SHA-256 of each file and directory that options name, by option: {"protect": ...}, {"files.0": ...}.

    Every value of type `Path` counts, also inside lists, mappings and nested options. What is missing has the hash "".
    What a step gives depends on what such a file holds, not on where it lies.
    """
    return {place: _hash_if_there(path) for place, path in _named_paths(options, "")}


def _named_paths(value: object, place: str) -> Iterator[tuple[str, Path]]:
    """Yield every path in a value, with its place: "files.0"."""
    children: Iterable[tuple[object, object]] = ()
    if isinstance(value, Path):
        yield place, value
    elif isinstance(value, BaseModel):
        children = iter(value)
    elif isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    elif isinstance(value, set | frozenset):
        children = enumerate(sorted(value, key=str))
    for name, child in children:
        yield from _named_paths(child, f"{place}.{name}" if place else str(name))


def _hash_if_there(path: Path) -> str:
    if path.is_dir():
        return hash_directory(path)
    return hash_file(path) if path.is_file() else ""


def read_schema(model: type[BaseModel], **settings: Any) -> dict[str, Any]:
    """Return the JSON schema of options; `settings` are those of pydantic. What is no JSON in it is a TypeError."""
    return dict(json.loads(json.dumps(model.model_json_schema(**settings))))


def option_schemas(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each option, by the name a recipe uses, references resolved one level deep."""
    schema = read_schema(model)
    definitions = schema.get("$defs", {})
    return {
        name: {**definitions.get(str(field.get("$ref", "")).rpartition("/")[2], {}), **field}
        for name, field in schema.get("properties", {}).items()
    }


def describe_range(schema: Mapping[str, Any]) -> str:
    """Return what an option takes, in words: "a number at least 0 and at most 1", "one of 'mse', 'entropy'"."""
    if "enum" in schema:
        return f"one of {', '.join(map(repr, schema['enum']))}"
    if "const" in schema:
        return repr(schema["const"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(describe_range(choice) for choice in schema[union])
    kind = schema.get("type", "value")
    noun = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "a text",
        "array": "a list",
        "object": "a mapping",
        "null": "nothing",
    }.get(kind, f"a {kind}")
    limits = [
        f"{words} {schema[key]}"
        for key, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
            ("pattern", "matching"),
            ("minItems", "with a length of at least"),
            ("maxItems", "with a length of at most"),
        )
        if key in schema
    ]
    return f"{noun} {' and '.join(limits)}" if limits else noun


def _explain(method: str, allowed: Mapping[str, Mapping[str, Any]], error: ValidationError) -> RecipeError:
    """Return the error for the first invalid option; the rest is counted."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    name = ".".join(map(str, first["loc"]))
    schema = allowed.get(str(first["loc"][0])) if first["loc"] else None
    if first["type"] == "missing":
        what = f"method {method!r} misses the option {name!r}"
    elif name:
        what = f"option {name!r} of method {method!r} is {brief(first['input'])}"
    else:
        what = f"the options of method {method!r} do not fit together: {first['msg']}"
    more = f" {len(problems) - 1} further options are wrong as well." if len(problems) > 1 else ""
    return RecipeError(
        what,
        expected=describe_range(schema) if schema is not None else first["msg"],
        why=f"{first['msg']}.{more}",
        fix=f"`edgesmith methods {method}` lists every option with its range and default.",
    )
