"""Runs on devices, in words and numbers, for the terminal and for the report."""

import html
import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.device.record import load_record
from edgesmith.host.records import ReportSection
from edgesmith.report.format import format_decibels, format_milliseconds, format_number, format_spread, format_value

if TYPE_CHECKING:
    from edgesmith.device.record import DeviceRun

TITLE = "On devices"


def validation_sections(directory: str) -> list[ReportSection]:
    """Return a section with every run on a device, newest first; none if the artifact was never validated."""
    runs = load_record(Path(directory)).runs
    if not runs:
        return []
    return [ReportSection(TITLE, "".join(_run_html(run) for run in reversed(runs)))]


def run_lines(run: "DeviceRun") -> list[tuple[str, str]]:
    """Return what is to be said of a run as pairs of name and text."""
    latency = run.row.latency_ms
    lines = [("machine", str(run.machine.get("machine", "")))]
    if latency is not None:
        lines += [
            (
                "latency",
                f"{format_milliseconds(latency.value)} [{format_spread(latency)}], median of {latency.samples} runs",
            ),
            ("percentiles", ", ".join(f"{name} {format_milliseconds(ms)}" for name, ms in run.percentiles_ms.items())),
            ("conditions", ", ".join(f"{name} {fact}" for name, fact in latency.conditions.items())),
        ]
    lines.append(("throughput", f"{format_number(run.samples_per_second)} samples/s"))
    if run.energy_mj is not None:
        lines.append(("energy", f"{format_number(run.energy_mj.value)} mJ for one run"))
    before, after = run.before.hottest_celsius, run.after.hottest_celsius
    if before is not None and after is not None:
        lines.append(("temperature", f"{before:.0f} °C before, {after:.0f} °C after"))
    if run.row.metric is not None and run.simulated_metric is not None:
        scores = [format_value(metric.value, metric.unit) for metric in (run.row.metric, run.simulated_metric)]
        lines.append(("metric", f"{scores[0]}, simulated {scores[1]}, on {run.row.metric.samples} samples"))
    for name, gap in run.gaps.items():
        sqnr = "none" if gap.sqnr_db == math.inf else f"SQNR {format_decibels(gap.sqnr_db)}"
        numbers = f"{sqnr}, cosine {gap.cosine:.6f}, largest difference {gap.max_abs:.3g}"
        lines.append((f"gap of {name}", numbers))
    lines += _layer_lines(run)
    if run.loadgen is not None:
        validity = "valid" if run.loadgen.is_valid else "not valid as an MLPerf result"
        figures = ", ".join(f"{name} {format_number(number)}" for name, number in run.loadgen.figures.items())
        lines.append((f"LoadGen {run.loadgen.scenario}", f"{validity}: {figures}"))
    if run.engine is not None:
        lines += run.engine.lines()
        lines += [(finding.rule, f"{finding.hazard} {finding.fix}") for finding in run.engine.findings]
    versions = (f"{name} {fact}" for name, fact in run.machine.items() if name != "machine")
    return [*lines, ("device", ", ".join(versions))]


def _layer_lines(run: "DeviceRun") -> list[tuple[str, str]]:
    """Return where inside the graph the device leaves the simulation: where the gap grows most, and the worst value."""
    layers = run.row.layers
    if not layers:
        return []
    worst = min(layers, key=lambda layer: layer.sqnr_db)
    falls = [(before.sqnr_db - after.sqnr_db, after) for before, after in pairwise(layers) if after.sqnr_db < math.inf]
    lines = [("gap inside", f"worst at {worst.layer}: SQNR {format_decibels(worst.sqnr_db)}, of {len(layers)} values")]
    if falls:
        fall, at = max(falls, key=lambda item: item[0])
        size = "from none" if fall == math.inf else f"by {format_decibels(fall)}"
        if fall > 0:
            lines.append(("gap grows most", f"at {at.layer}: {size}, to SQNR {format_decibels(at.sqnr_db)}"))
    return lines


def _run_html(run: "DeviceRun") -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in run_lines(run)
    )
    remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in run.remarks)
    title = f"{run.on}, {run.when}: tier {run.tier} ({run.reason})"
    return f"<h3>{html.escape(title)}</h3><table>{rows}</table>{remarks}"
