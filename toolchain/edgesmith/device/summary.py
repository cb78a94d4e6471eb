"""What a device answered as numbers of the ledger, each with its tier, spread and conditions."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from edgesmith.device.comparison import SIMULATION, OutputComparison
from edgesmith.device.facts import Probe, Reply, read_power, total_power
from edgesmith.device.loadgen import read_summary
from edgesmith.device.record import DeviceRun
from edgesmith.device.runtimes import TRTEXEC
from edgesmith.device.worker.turns import quartiles
from edgesmith.engine import EngineReport
from edgesmith.host.records import Tier
from edgesmith.ledger import LayerError, LedgerRow, Measurement
from edgesmith.measure.reference import OPTIMIZATION
from edgesmith.measure.runner import busy_remarks, name_shapes, summarize

if TYPE_CHECKING:
    import numpy as np

_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one run on a device brought back."""

    address: str
    tier: Tier
    reason: str
    """Why the numbers have this tier."""
    probe: Probe
    reply: Reply
    comparison: OutputComparison
    data: str
    """Description of the samples."""
    unit: str
    """Unit of the metric; empty without one."""
    layers: tuple[LayerError, ...] = ()
    """Distance from the simulation inside the graph."""
    engine: EngineReport | None = None
    """What the runtime built."""


def conditions_of(
    seen: Seen, inputs: "Mapping[str, np.ndarray]", batch: int, threads: int | None
) -> dict[str, str | int | float]:
    """Return what must be equal for another latency to be comparable: also power mode and clocks.

    Args:
        seen: The run.
        inputs: What was timed.
        batch: Samples in it.
        threads: Threads of ONNX Runtime; None for runtimes on a GPU.
    """
    reply = seen.reply
    return {
        "runtime": reply.runtime,
        "provider": reply.provider,
        "optimization": reply.optimization,
        **({} if threads is None else {"threads": threads}),
        **reply.graph_conditions,
        "batch": batch,
        "shapes": name_shapes(inputs),
        "processor": seen.probe.machine,
        **reply.before.conditions,
    }


def summarize_run(
    seen: Seen, chosen: LedgerRow, conditions: Mapping[str, str | int | float], remarks: Sequence[str]
) -> DeviceRun:
    """Return the entry of the validation record for one run.

    Args:
        seen: What came back.
        chosen: The ledger's row of the stage that became the artifact.
        conditions: What makes the latency comparable.
        remarks: What happened on the way.
    """
    reply, comparison = seen.reply, seen.comparison
    latency = summarize(reply.times_ms, unit="ms", tier=seen.tier, conditions=conditions)
    row = LedgerRow(
        index=chosen.index,
        stage=chosen.stage,
        metric=_metric(seen, comparison.metric, seen.tier),
        latency_ms=latency,
        errors=(comparison.worst,),
        layers=seen.layers,
        remarks=(f"The error is against the {SIMULATION} of the same graph, on {comparison.samples} samples.",),
    )
    return DeviceRun(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        on=seen.address,
        tier=seen.tier,
        reason=seen.reason,
        row=row,
        gaps=comparison.gaps,
        simulation=f"ONNX Runtime at the level {OPTIMIZATION}, on {seen.data}",
        simulated_metric=_metric(seen, comparison.simulated_metric, Tier.SIMULATED),
        percentiles_ms=percentiles(reply.times_ms),
        samples_per_second=float(conditions["batch"]) * 1e3 / latency.value,
        energy_mj=_energy(reply, latency),
        engine=seen.engine,
        loadgen=read_summary(reply.loadgen) if reply.loadgen else None,
        machine=seen.probe.facts(),
        before=reply.before,
        after=reply.after,
        remarks=(*remarks, *_state_remarks(reply)),
    )


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Return the times in milliseconds that 50, 90, 95 and 99 % of all runs stay below, by name such as "p99"."""
    if len(times) == 1:
        return {f"p{percent}": times[0] for percent in _PERCENTILES}
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {f"p{percent}": cuts[percent - 1] for percent in _PERCENTILES}


def _metric(seen: Seen, value: float | None, tier: Tier) -> Measurement | None:
    if value is None:
        return None
    return Measurement(value=value, unit=seen.unit, tier=tier, samples=seen.comparison.samples)


def _energy(reply: Reply, latency: Measurement) -> Measurement | None:
    """Return the energy of the whole module for one run: its power while it was timed, times the median latency."""
    milliwatts = total_power(read_power(reply.tegrastats))
    if not milliwatts:
        return None
    low, middle, high = (power * latency.value / 1e3 for power in quartiles(milliwatts))
    return Measurement(
        value=middle,
        unit="mJ",
        tier=latency.tier,
        samples=len(milliwatts),
        low=low,
        high=high,
        conditions=latency.conditions,
    )


def _state_remarks(reply: Reply) -> tuple[str, ...]:
    remarks = [*busy_remarks(reply.waiting_share), *reply.remarks]
    if reply.runtime.startswith(TRTEXEC):
        remarks.append(
            "trtexec writes outputs with six digits, so gaps below a millionth cannot be seen, and whole numbers above "
            "16777216 are rounded."
        )
    if reply.engine_problem:
        remarks.append(f"The layers of the engine could not be read: {reply.engine_problem.rstrip('.')}.")
    if reply.clock_problem:
        remarks.append(f"Clocks could not be locked: {reply.clock_problem}.")
    return tuple(remarks)
