"""`edgesmith compare`: two artifacts side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.output import write_json, write_renderable
from edgesmith.cli.settings import AsJson

if TYPE_CHECKING:
    from edgesmith.measure.compare import ArtifactComparison

EXAMPLE = "edgesmith compare artifact-fp32 artifact-int8"


def command(
    before: Annotated[Path, typer.Argument(help="Artifact directory that is the yardstick.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Artifact directory that is compared.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compare two artifacts, on devices too. Numbers taken under different conditions are refused, with the reason."""
    from edgesmith.measure.compare import compare_artifacts

    comparison = compare_artifacts(before, after)
    if as_json:
        write_json(_as_json(comparison))
        return
    from edgesmith.report.terminal import comparison_table

    write_renderable(comparison_table(comparison))


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
        "warnings": list(comparison.warnings),
    }
