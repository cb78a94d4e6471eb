"""`edgesmith inspect`: what is in a model, what it costs, and which methods apply to it."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.completion import target_names
from edgesmith.cli.output import write_json, write_table, write_text
from edgesmith.cli.settings import AsJson, Source, isolation_of, registry_of, time_limit

if TYPE_CHECKING:
    from edgesmith.host.dialect import Dialect
    from edgesmith.host.records import MethodRecord
    from edgesmith.host.registry import Registry
    from edgesmith.host.verdict import Verdict
    from edgesmith.isolation.limits import Isolation
    from edgesmith.model import Model

EXAMPLE = "edgesmith inspect ./my-model --json"

_LARGEST_TABLE = 24
_LARGEST_LIST = 12


def command(
    context: typer.Context,
    source: Source,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME",
            help="Target whose dialect the methods are asked about.",
            autocompletion=target_names,
        ),
    ] = "onnx-cpu",
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Ask each method in a process of its own, within limits.")
    ] = False,
    time_limit_seconds: Annotated[float | None, time_limit("method")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in a model: blocks, attention, MLPs, convolutions, parameters, MACs, and which methods apply."""
    registry = registry_of(context)
    isolation = isolation_of(isolate, time_limit_seconds, None)
    from edgesmith.cli.progress import make_progress
    from edgesmith.host.targets import find_target

    dialect = find_target(registry, target)[1].dialect

    with make_progress(silent=as_json) as progress:
        from edgesmith.api import load_source
        from edgesmith.pipeline import Workshop
        from edgesmith.store import Store

        model = load_source(source, Workshop(registry, Store(), progress, 1))
        with progress.stage("finding the structure"):
            report = describe(model)
        with progress.stage("asking the methods"):
            report["methods"] = applicability(registry, model, dialect, isolation)
    if as_json:
        write_json(report)
    else:
        _show(source, report)


def describe(model: "Model") -> dict[str, object]:
    """Return inputs, outputs, operators, structure and cost of a model as JSON data."""
    from edgesmith.frontends.fixed_dimensions import text_lengths
    from edgesmith.graph.cost import USUAL_SEQUENCE, count_cost
    from edgesmith.graph.structure import find_structure

    graph = model.ir.graph
    # Longer texts than the model takes are cut, so nobody pays for them.
    short_texts = {name: length for name, length in text_lengths(model).items() if length < USUAL_SEQUENCE}
    operators = Counter(node.op_type for node in graph.all_nodes())
    return {
        "source": model.provenance.source,
        "task": model.task.kind,
        "opset": model.ir.opset_imports.get("", None),
        "inputs": [f"{value.name} {value.dtype} {value.shape}" for value in graph.inputs],
        "outputs": [f"{value.name} {value.dtype} {value.shape}" for value in graph.outputs],
        "operators": dict(operators.most_common()),
        "remarks": list(model.provenance.remarks),
        "cost": count_cost(model.ir, short_texts).to_json(),
        "structure": find_structure(model.ir).to_json(),
    }


def applicability(
    registry: "Registry", model: "Model", dialect: "Dialect", isolation: "Isolation | None" = None
) -> list[dict[str, object]]:
    """Return for each installed method whether it applies with its default options, and why not.

    The methods are told that there is calibration data: the question is whether the model suits them.

    Args:
        registry: The installed plugins.
        model: The model.
        dialect: That of the target it is for.
        isolation: Limits of a process of its own for each method; None asks all in this one.
    """
    rows: list[dict[str, object]] = []
    for record in registry.methods():
        verdict = _ask(registry, record, model, dialect, isolation)
        rows.append(
            {
                "method": record.name,
                "distribution": registry.distribution_of(record),
                "verdict": verdict.status,
                "reason": verdict.reason,
                "nodes": list(verdict.nodes),
            }
        )
    return rows


def _ask(
    registry: "Registry", record: "MethodRecord", model: "Model", dialect: "Dialect", isolation: "Isolation | None"
) -> "Verdict":
    from edgesmith.data import RandomInputs
    from edgesmith.errors import PluginError, RecipeError, StepError
    from edgesmith.host.context import Context
    from edgesmith.host.needs import check_needs
    from edgesmith.host.step import check_method
    from edgesmith.host.verdict import Verdict

    try:
        check_needs(record)
        options = registry.validate_options(record, {})
        with tempfile.TemporaryDirectory(prefix="edgesmith-") as scratch:
            # The model is what a run would start from, too.
            context = Context(options, dialect, Path(scratch), calibration=RandomInputs(model), source=model)
            return check_method(registry, record, model, context, isolation=isolation)
    except (PluginError, RecipeError, StepError) as error:
        return Verdict.refuse(error.what)


def _show(source: str, report: dict[str, object]) -> None:
    from edgesmith.report.structure import read_structure

    write_text(f"{source}  ({report['task']}, opset {report['opset']})")
    for role in ("inputs", "outputs", "remarks"):
        for line in _items(report[role]):
            write_text(f"  {role.removesuffix('s'):7} {line}")
    operators = report["operators"]
    if isinstance(operators, dict):
        most = [f"{count} {name}" for name, count in list(operators.items())[:_LARGEST_LIST]]
        rest = len(operators) - len(most)
        write_text(f"  operators {', '.join(most)}" + (f" and {rest} more kinds" if rest > 0 else ""))
    view = read_structure({"cost": report["cost"], "structure": report["structure"]})
    for line in view.conditions:
        write_text(f"  {line}")
    write_table(
        ("what", "value"),
        [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in view.facts.items()],
    )
    for table in view.tables:
        shown = table.rows[:_LARGEST_TABLE]
        write_table(table.columns, shown, title=table.title)
        left_out = len(table.rows) - len(shown) + table.left_out
        if left_out:
            write_text(f"  and {left_out} more; --json lists them all")
    rows = [
        (str(row["method"]), str(row["verdict"]), _why(row), str(row["distribution"]))
        for row in _items(report["methods"])
        if isinstance(row, dict)
    ]
    write_table(("method", "verdict", "why", "from"), rows, title="methods")


def _why(row: dict[str, object]) -> str:
    nodes = len(_items(row["nodes"]))
    return str(row["reason"]) or (f"{nodes} nodes" if nodes else "")


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []
