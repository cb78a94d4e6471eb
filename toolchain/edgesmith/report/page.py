"""The HTML report: one file that needs nothing else, readable offline, in print, and by a screen reader."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.errors import MeasurementError
from edgesmith.files import write_atomically
from edgesmith.ledger import Ledger, LedgerRow, load_ledger
from edgesmith.report import charts, content
from edgesmith.report.format import capitalize, format_bytes, format_count, format_decibels, format_seconds, shorten
from edgesmith.report.structure import StructureView, read_structure
from edgesmith.report.svg import clean

if TYPE_CHECKING:
    from jinja2 import Environment

    from edgesmith.host.records import ReportSection

FILE_NAME = "report.html"

_WORST_LAYERS = 8
_LARGEST_TEXT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file of the artifact."""

    name: str
    size: str
    sha256: str


def render_report(directory: Path, sections: "Sequence[ReportSection]" = ()) -> Path:
    """Write `report.html` into an artifact directory and return its path.

    Reads ledger.json, and structure.json, recipe.yaml and manifest.json as far as they are there.

    Args:
        directory: The artifact directory.
        sections: Sections of plugins. Their HTML is shown in frames without scripts, forms or access to the page.

    Raises:
        MeasurementError: There is no valid ledger, or another file of the artifact is damaged.
        OutputError: The report cannot be written.
    """
    ledger = load_ledger(directory)
    manifest = _read_json(directory / "manifest.json")
    assets = files("edgesmith.report") / "templates"
    script = (assets / "script.js").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template("report.html")
        .render(
            ledger=ledger,
            style=(assets / "style.css").read_text(encoding="utf-8"),
            frame_style=(assets / "frame.css").read_text(encoding="utf-8"),
            script=script,
            script_hash=_content_hash(script),
            rows=content.row_views(ledger),
            figures=content.key_figures(ledger),
            budget=content.budget_lines(ledger),
            skipped=content.skipped_by_reason(ledger),
            conditions=content.conditions_of(ledger),
            tiers=content.TIERS,
            latency_plot=charts.latency_plot(ledger),
            size_plot=charts.size_plot(ledger),
            layers=_layer_views(ledger),
            structure=_structure(directory),
            recipe=_read_text(directory / "recipe.yaml"),
            command=str(manifest.get("command", "")),
            versions={**ledger.versions, **_strings(manifest.get("versions"))},
            files=_artifact_files(manifest.get("files")),
            sections=sections,
        )
    )
    path = directory / FILE_NAME
    write_atomically(path, clean(page))
    return path


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgesmith.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        capital=capitalize,
        count=format_count,
        bytes=format_bytes,
        seconds=format_seconds,
        shorten=shorten,
        decibels=format_decibels,
    )
    return environment


def _layer_views(ledger: Ledger) -> list[dict[str, object]]:
    """Return plot and worst values of each stage with layer errors: first the step with the largest error, open.

    The lowering, which is no method, and stages whose values are all equal stay closed.
    """
    with_layers = sorted((row for row in ledger.rows if row.layers), key=_error_order)
    return [
        {
            "row": row,
            "plot": charts.layer_plot(row),
            "worst": charts.worst_layers(row, _WORST_LAYERS),
            "open": place == 0 and bool(row.method) and _smallest_ratio(row) < math.inf,
        }
        for place, row in enumerate(with_layers)
    ]


def _error_order(row: LedgerRow) -> tuple[bool, float]:
    return not row.method, _smallest_ratio(row)


def _smallest_ratio(row: LedgerRow) -> float:
    """Return the ratio at the value with the largest error in dB; infinite where all are equal."""
    ratios = [one.sqnr_db for one in row.layers]
    return -math.inf if any(map(math.isnan, ratios)) else min(ratios)


def _structure(directory: Path) -> StructureView | None:
    data = _read_json(directory / "structure.json")
    return read_structure(data) if data else None


def _artifact_files(entries: object) -> list[ArtifactFile]:
    if not isinstance(entries, Mapping):
        return []
    found = []
    for name, facts in entries.items():
        facts = facts if isinstance(facts, Mapping) else {}
        size = facts.get("size_bytes")
        text = format_bytes(size) if isinstance(size, int) else ""
        found.append(ArtifactFile(str(name), text, str(facts.get("sha256", ""))))
    return found


def _strings(entries: object) -> dict[str, str]:
    return {str(name): str(value) for name, value in entries.items()} if isinstance(entries, Mapping) else {}


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(data, dict):
        raise _damaged(path, f"it holds a {type(data).__name__}")
    return data


def _read_text(path: Path) -> str:
    """Return the start of a text file, since the page must stay small whatever is in the directory."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return stream.read(_LARGEST_TEXT_BYTES).decode("utf-8", errors="replace")


def _damaged(path: Path, reason: str) -> MeasurementError:
    return MeasurementError(
        f"{path} cannot be read: {reason}",
        expected="a JSON object written by `edgesmith compile`",
        why="a report must not show half of an artifact as if it were all",
        fix="compile again, or delete the file to leave its part out of the report",
    )


def _content_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
