"""`edgesmith compare`: two artifacts side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.output import write_json, write_table, write_text

if TYPE_CHECKING:
    from edgesmith.ledger import Measurement
    from edgesmith.measure.compare import ArtifactComparison, ComparedFigure

EXAMPLE = "edgesmith compare artifact-fp32 artifact-int8"


def command(
    before: Annotated[Path, typer.Argument(help="Artifact directory to compare with.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Artifact directory that is compared.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two artifacts. Numbers taken under different conditions are refused, with the reason."""
    from edgesmith.measure.compare import compare_artifacts

    comparison = compare_artifacts(before, after)
    if as_json:
        write_json(_as_json(comparison))
        return
    rows = [
        (figure.name, _number(figure.before), _number(figure.after), _change(figure), figure.refusal or figure.note)
        for figure in comparison.figures
    ]
    write_table(("figure", comparison.before, comparison.after, "change", "remark"), rows)
    if comparison.differences:
        differences = [(name, first, second) for name, (first, second) in comparison.differences.items()]
        write_table(("differs in", comparison.before, comparison.after), differences)
    else:
        write_text("Source, target, data and versions are the same.")


def _as_json(comparison: "ArtifactComparison") -> dict[str, object]:
    figures = [
        {
            "name": figure.name,
            "before": figure.before and figure.before.model_dump(mode="json"),
            "after": figure.after and figure.after.model_dump(mode="json"),
            "ratio": figure.ratio,
            "difference": figure.difference,
            "refusal": figure.refusal,
            "note": figure.note,
        }
        for figure in comparison.figures
    ]
    return {
        "before": comparison.before,
        "after": comparison.after,
        "figures": figures,
        "differences": {name: list(pair) for name, pair in comparison.differences.items()},
    }


def _number(measurement: "Measurement | None") -> str:
    """Return value, unit and tier, in the units that people read."""
    if measurement is None:
        return "-"
    value, unit = measurement.value, measurement.unit
    if unit == "bytes":
        value, unit = value / 1e6, "MB"
    return f"{value:,.2f} {unit} ({measurement.tier})".replace("  ", " ")


def _change(figure: "ComparedFigure") -> str:
    if figure.ratio is None or figure.difference is None:
        return "not comparable"
    if figure.before is not None and figure.before.unit == "%":
        return f"{figure.difference:+.2f} points"
    return f"x {figure.ratio:.3f}"
