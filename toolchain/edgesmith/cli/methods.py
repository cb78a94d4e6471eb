"""`edgesmith methods`: the installed compression methods."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.completion import method_names
from edgesmith.cli.output import write_json, write_table, write_text
from edgesmith.cli.settings import AsJson, registry_of

if TYPE_CHECKING:
    from edgesmith.host.records import MethodRecord
    from edgesmith.host.registry import Registry

EXAMPLE = "edgesmith methods quantize-int8"


def command(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="Show one method with its options.", show_default=False, autocompletion=method_names),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the installed methods: what they do, what they need, and what they promise."""
    registry = registry_of(context)
    if name is not None:
        _show_one(registry, registry.method(name), as_json)
        return
    methods = registry.methods()
    if as_json:
        write_json([_as_json(registry, method) for method in methods])
        return
    rows = [(method.name, f"{method.summary}\n{_facts(registry, method)}") for method in methods]
    write_table(("method", "what it does"), rows)


def _show_one(registry: "Registry", method: "MethodRecord", as_json: bool) -> None:
    from edgesmith.host.options import describe_range, option_schemas
    from edgesmith.host.order import declared_by_others

    options = registry.ask_options(method, option_schemas)
    others = declared_by_others(method, registry)
    if as_json:
        write_json({**_as_json(registry, method), "declared_by_others": list(others), "option_schemas": options})
        return
    write_text(f"{method.name} {method.version}: {method.summary}")
    write_text(f"  {_facts(registry, method)}")
    rules = {"before": "must stand before", "after": "must stand after", "excludes": "excludes"}
    for constraint, words in asdict(method.order).items():
        if words:
            write_text(f"  {rules[constraint]} {', '.join(words)}")
    for sentence in others:
        write_text(f"  {sentence}")
    if method.source:
        write_text(f"  source: {method.source}")
    rows = [
        (option, f"{schema.get('description', '')}\n{describe_range(schema)}; default {schema.get('default', 'none')}")
        for option, schema in options.items()
    ]
    write_table(("option", "what it sets"), rows)


def _as_json(registry: "Registry", method: "MethodRecord") -> dict[str, object]:
    return {**asdict(method), "distribution": registry.distribution_of(method)}


def _facts(registry: "Registry", method: "MethodRecord") -> str:
    """Return kind, guarantee, needs and origin in one line."""
    promise = f"{method.guarantee} {method.tolerance:g}" if method.tolerance else str(method.guarantee)
    flags = [flag for flag in ("data", "labels", "gradients", "gpu") if getattr(method.needs, flag)]
    needs = ", ".join([*flags, *method.needs.packages]) or "nothing"
    return f"{method.kind}, {promise}, needs {needs}, from {registry.distribution_of(method)}"
