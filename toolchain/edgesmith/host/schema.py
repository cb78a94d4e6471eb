"""The JSON schema of recipes with every installed method's options, so that editors complete and check them."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from edgesmith.errors import PluginError
from edgesmith.host.options import read_schema
from edgesmith.recipe import Recipe

if TYPE_CHECKING:
    from edgesmith.host.records import MethodRecord
    from edgesmith.host.registry import Registry

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema(registry: "Registry") -> dict[str, Any]:
    """Return the schema of a recipe: the core's own fields, and `oneOf` the installed methods for each step."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    step = definitions.pop("Step")
    names = Counter(record.name for record in registry.methods())
    choices = []
    for record in registry.methods():
        choices.append(_step_schema(registry, record, step, unique=names[record.name] == 1))
        definitions.update(choices[-1].pop("$defs", {}))
    definitions["Step"] = {"title": step["title"], "description": step["description"], "oneOf": choices}
    return {"$schema": _DIALECT, **schema}


def _step_schema(registry: "Registry", record: "MethodRecord", step: dict[str, Any], *, unique: bool) -> dict[str, Any]:
    """Return the schema of a step that names `record`; a name with two owners must be qualified."""
    qualified = registry.qualified_name(record)
    options, definitions = _options_schema(registry, record)
    result: dict[str, Any] = json.loads(json.dumps(step))
    result["title"] = qualified
    result["description"] = record.summary
    result["properties"]["method"] = {"enum": [record.name, qualified] if unique else [qualified]}
    result["properties"]["options"] = options
    if options.get("required"):
        result["required"] = [*result.get("required", []), "options"]
    return {**result, "$defs": definitions}


def _options_schema(registry: "Registry", record: "MethodRecord") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of a method's options and the definitions it refers to, under names of their own."""
    prefix = registry.qualified_name(record).replace(":", ".")
    try:
        schema = registry.ask_options(
            record, lambda model: read_schema(model, ref_template=f"#/$defs/{prefix}.{{model}}")
        )
    except PluginError as error:
        # One broken plugin must not cost the completion of all the others.
        return {"type": "object", "description": error.what}, {}
    definitions = {f"{prefix}.{name}": found for name, found in schema.pop("$defs", {}).items()}
    return {**schema, "additionalProperties": schema.get("additionalProperties", False)}, definitions
