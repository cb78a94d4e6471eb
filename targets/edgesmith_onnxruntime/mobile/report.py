"""The section of a report about what ships to phones."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesmith.host.records import ReportSection

TITLE = "On phones"

_MANIFEST = "manifest.json"


def phone_sections(directory: Path) -> list[ReportSection]:
    """Return a section about the artifact in `directory`, or none where it is not for a phone."""
    build = json.loads((directory / _MANIFEST).read_text(encoding="utf-8")).get("build", {})
    parts = [_format_html(build["ort_format"])] if "ort_format" in build else []
    parts += [_providers_html(build["providers"])] if build.get("providers") else []
    if build.get("snippets"):
        parts.append(f"<p>Code that loads it: {html.escape(', '.join(build['snippets']))}.</p>")
    return [ReportSection(TITLE, "".join(parts))] if parts else []


def _format_html(facts: Mapping[str, Any]) -> str:
    errors = facts.get("relative_errors", {})
    if not errors:
        equal = "Its outputs were not compared with those of model.onnx here."
    elif max(errors.values()) == 0:
        equal = "On sample inputs its outputs have the bits of model.onnx."
    else:
        equal = f"On sample inputs its outputs differ from those of model.onnx by {max(errors.values()):.1e} at most."
    text = f"{facts['file']} is the same graph in ORT format (style {facts['style']}). {equal} A reduced build of ONNX "
    text += f"Runtime needs the operators and types in {facts['required_operators']}."
    return f"<p>{html.escape(text)}</p>"


def _providers_html(providers: list[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("Provider", "Use it", "Nodes", "Parts", "Not taken"))
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(each))}</tr>" for each in providers
    )
    note = "As ONNX Runtime's usability check lists operators and shapes; no provider ran here."
    return f"<table><tr>{head}</tr>{rows}</table><p>{note}</p>"


def _cells(facts: Mapping[str, Any]) -> list[str]:
    absent = [f"{operator} ({count})" for operator, count in facts["unsupported"].items()]
    absent += [f"{facts['open_shapes']} with open shapes"] if facts["open_shapes"] else []
    absent += [f"{facts['high_rank']} with too many dimensions"] if facts["high_rank"] else []
    taken = f"{facts['supported']} of {facts['nodes']}"
    return [facts["provider"], facts["advice"], taken, str(facts["partitions"]), ", ".join(absent) or "nothing"]
