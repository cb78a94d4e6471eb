"""Validates an artifact where it will run: copies it there, times it, and holds its outputs against the simulation."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.api import choose_metric
from edgesmith.artifact import REBUILT
from edgesmith.data import RandomInputs, RunData, choose_data, fixed_batch_size
from edgesmith.device.comparison import OutputComparison, compare_outputs
from edgesmith.device.facts import Probe, Reply, require_one_state
from edgesmith.device.insistence import insist
from edgesmith.device.plan import ValidationPlan
from edgesmith.device.record import DeviceRun
from edgesmith.device.remote import (
    ANSWER,
    ENGINE_IS_WHOLE,
    OUTPUTS,
    TAPS,
    build_engine,
    probe_device,
    run_worker,
)
from edgesmith.device.runtimes import (
    ONNX_RUNTIME,
    require_loadgen,
    tier_of,
    unlisted_version,
    usable_runtime,
)
from edgesmith.device.shipment import ENGINE, Shipment, load_model, read_shipment
from edgesmith.device.summary import Seen, conditions_of, summarize_run
from edgesmith.device.taps import MOST_BATCHES, TAPPED_FILE, choose_taps, compare_taps, write_tapped
from edgesmith.device.transport import Transport, Workspace, workspace
from edgesmith.device.worker.archive import ArrayArchive
from edgesmith.engine import EngineReport
from edgesmith.errors import DataError, TargetError
from edgesmith.host.building import explain_engine
from edgesmith.host.targets import find_target
from edgesmith.ledger import LayerError, Ledger, load_ledger
from edgesmith.measure.contained import MetricMaker
from edgesmith.model import Model
from edgesmith.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from edgesmith.host.interfaces import Target
    from edgesmith.host.records import MetricRecord, TargetRecord
    from edgesmith.host.registry import Registry
    from edgesmith_calibration.sources import Batch


@dataclass(frozen=True, slots=True)
class _Samples:
    """What the device runs."""

    batches: "tuple[Batch, ...]"
    model: Model
    data: RunData
    description: str
    remark: str = ""
    """Which samples these are, where they are not all."""

    @property
    def has_labels(self) -> bool:
        """Whether a metric can be computed from them."""
        return self.data.evaluation is not None and self.data.evaluation.has_labels


@dataclass(slots=True)
class _Visit:
    """What is asked of a device, and what it answered."""

    shipment: Shipment
    samples: _Samples
    plan: ValidationPlan
    target_record: "TargetRecord"
    target: "Target"
    labels: dict[str, str]
    """Values inside the graph to compare, with their places."""
    scratch: Path
    progress: Progress
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Answered:
    """What came back from a device."""

    probe: Probe
    runtime: str
    threads: int | None
    reply: Reply
    folder: Path


def validate(
    directory: Path,
    transport: Transport,
    registry: "Registry",
    *,
    data: "str | Path | None" = None,
    plan: ValidationPlan | None = None,
    progress: Progress | None = None,
) -> DeviceRun:
    """Run the artifact in `directory` on a device and return what was measured there.

    A connection that is lost is made again, and what is on the device already is used.

    Args:
        directory: The artifact.
        transport: The way to the device.
        registry: The installed plugins.
        data: Samples as for compiling; those for evaluation are used. None takes random inputs.
        plan: How to validate.
        progress: Shows what is going on.

    Raises:
        DeviceError: The device cannot be reached, lacks something, or did not finish. It is left clean.
        MeasurementError: What came back cannot be compared.
        ModelError: The artifact is damaged.
        DataError: The data does not fit the model.
    """
    plan, progress = plan or ValidationPlan(), progress or SilentProgress()
    shipment, ledger = read_shipment(directory), load_ledger(directory)
    target_record, target = find_target(registry, plan.target or shipment.target)
    samples = _open_samples(shipment, data, plan)
    labels = choose_taps(samples.model.ir, ledger.chosen_row, plan.taps) if plan.taps else {}
    with tempfile.TemporaryDirectory(prefix="edgesmith-validate-") as scratch:
        visit = _Visit(shipment, samples, plan, target_record, target, labels, Path(scratch), progress)
        visit.remarks += [samples.remark] if samples.remark else []
        with workspace(transport, keep=plan.keep, resume=plan.resume) as place:
            found = insist(place, lambda: _visit(place, visit), plan.reconnects, progress)
        visit.remarks += place.remarks
        if plan.taps and not found.reply.taps:
            visit.remarks.append(_no_taps(found.runtime))
        if plan.cool_below and not found.reply.before.temperatures_celsius:
            visit.remarks.append("The device tells no temperature, so it was not waited for.")
        require_one_state(transport.address, found.reply.before, found.reply.after)
        with progress.stage("comparing with the simulation"):
            metric = _metric(registry, ledger, samples)
            comparison = compare_outputs(
                shipment.entry,
                samples.batches,
                found.folder / OUTPUTS,
                found.reply.outputs,
                MetricMaker(f"Metric {metric.name} {metric.version}", registry.load(metric)) if metric else None,
            )
            layers = _compare_layers(visit, found)
    return _summarize(transport, visit, found, comparison, layers, ledger, metric.unit if metric else "")


def _visit(place: Workspace, visit: _Visit) -> _Answered:
    """Ask the device everything, from what it is to its outputs. May be called again after a lost connection."""
    plan, address, progress = visit.plan, place.transport.address, visit.progress
    with progress.stage(f"asking {address} what it is"):
        probe = probe_device(place, visit.scratch)
    runtime = usable_runtime(place.transport, probe, visit.target.profile, plan.runtime)
    if plan.loadgen:
        require_loadgen(address, probe, runtime)
    with progress.stage(f"copying {visit.shipment.size_bytes / 1e6:.1f} MB to {address}"):
        _send(place, visit, runtime)
    if runtime != ONNX_RUNTIME:
        with progress.stage(f"building the engine on {address}"):
            visit.remarks.append(build_engine(place, runtime, probe, plan.timeout))
    request = _request(visit, probe, runtime)
    with progress.stage(f"running on {address}"):
        reply, folder = run_worker(place, request, visit.scratch, plan.timeout)
    unlisted = unlisted_version(visit.target.profile, probe, runtime, reply.runtime)
    if unlisted:
        visit.remarks.append(unlisted)
    threads = int(str(request["threads"])) if runtime == ONNX_RUNTIME else None
    return _Answered(probe, runtime, threads, reply, folder)


def _open_samples(shipment: Shipment, data: "str | Path | None", plan: ValidationPlan) -> _Samples:
    """Return the evaluation batches, or random inputs where no data is given."""
    choice = choose_data(data)
    model = choice.equip(load_model(shipment.entry))
    opened = choice.open(model)
    size = fixed_batch_size(model) or plan.batch_size
    if opened.evaluation is None:
        source = RandomInputs(model, batch_size=size).take(plan.samples)
    else:
        # Files lie sorted by class, so the first ones would score one class.
        source = opened.evaluation.sample(plan.samples)
    batches = tuple(source.batches(size))
    if not batches:
        raise DataError(
            f"There is no evaluation sample in {source.description}.",
            expected="at least one sample",
            why="The device is compared with the simulation on samples.",
            fix="Check the file, or leave --data out to compare on random inputs.",
        )
    return _Samples(batches, model, opened, source.description, _some_only(opened, len(source)))


def _some_only(data: RunData, count: int) -> str:
    """Return that not every evaluation sample is run, and which are; empty where all are."""
    if data.evaluation is None or count >= len(data.evaluation):
        return ""
    spread = "classes in equal shares, " if data.evaluation.has_labels else ""
    text = f"{count} of the {len(data.evaluation)} evaluation samples were run, chosen from all over them, {spread}"
    return f"{text}and the same ones each time. --set samples={len(data.evaluation)} runs all."


def _send(place: Workspace, visit: _Visit, runtime: str) -> None:
    with ArrayArchive(visit.scratch / "inputs.npz") as archive:
        for index, batch in enumerate(visit.samples.batches):
            archive.add(index, dict(batch.inputs))
    files = [*visit.shipment.files, visit.scratch / "inputs.npz"]
    if visit.labels and runtime == ONNX_RUNTIME:
        files += write_tapped(visit.shipment.entry, list(visit.labels), visit.scratch)
    if place.is_resumed:
        # An engine that came along may have been built anew there since.
        if all(place.holds(file, file.name) for file in files if file.name not in REBUILT):
            return
        # The answer and the engine of the try before were made of other files.
        place.remove(ANSWER)
        place.remove(ENGINE_IS_WHOLE)
    for file in files:
        place.push(file, file.name)


def _request(visit: _Visit, probe: Probe, runtime: str) -> dict[str, object]:
    plan, batches = visit.plan, visit.samples.batches
    is_tapped = bool(visit.labels) and runtime == ONNX_RUNTIME
    return {
        "model": visit.shipment.entry.name if runtime == ONNX_RUNTIME else ENGINE,
        "runtime": runtime,
        "inputs": list(batches[0].inputs),
        "batches": len(batches),
        "threads": plan.threads or probe.usable_cores,
        "as_written": visit.shipment.as_written,
        "warmup_runs": plan.warmup_runs,
        "seconds": plan.seconds,
        "fewest_runs": plan.fewest_runs,
        "most_runs": plan.most_runs,
        "cool_below_celsius": plan.cool_below,
        "cuda_graphs": plan.cuda_graphs,
        "lock_clocks": plan.lock_clocks,
        "tapped_model": TAPPED_FILE if is_tapped else "",
        "tapped_batches": min(len(batches), MOST_BATCHES),
        "loadgen": plan.loadgen,
        "target_qps": plan.target_qps,
    }


def _no_taps(runtime: str) -> str:
    """Return why no value inside the graph is compared."""
    if runtime == ONNX_RUNTIME:
        return "No value inside was compared: behind its weights this graph holds codes, and no value in float."
    return f"No value inside was compared: reading it out would change what {runtime} builds."


def _compare_layers(visit: _Visit, found: _Answered) -> tuple[LayerError, ...]:
    if not found.reply.taps:
        return ()
    batches = visit.samples.batches[:MOST_BATCHES]
    return compare_taps(visit.shipment.entry, batches, found.folder / TAPS, found.reply.taps, visit.labels)


def _read_engine(visit: _Visit, reply: Reply) -> EngineReport | None:
    """Return what the runtime built; a description that cannot be read is a remark, and no reason to fail."""
    if not reply.engine_layers:
        return None
    try:
        return explain_engine(
            visit.target_record, visit.target, visit.samples.model, reply.engine_layers, reply.engine_times
        )
    except TargetError as error:
        visit.remarks.append(f"The engine was not explained: {error.what}")
        return None


def _summarize(
    transport: Transport,
    visit: _Visit,
    found: _Answered,
    comparison: OutputComparison,
    layers: tuple[LayerError, ...],
    ledger: Ledger,
    unit: str,
) -> DeviceRun:
    tier, reason = tier_of(
        visit.target.profile, found.probe, found.runtime, found.reply.provider, is_local=transport.is_local
    )
    seen = Seen(
        address=transport.address,
        tier=tier,
        reason=reason,
        probe=found.probe,
        reply=found.reply,
        comparison=comparison,
        data=visit.samples.description,
        unit=unit,
        layers=layers,
        engine=_read_engine(visit, found.reply),
    )
    first = visit.samples.batches[0]
    conditions = conditions_of(seen, first.inputs, first.size, found.threads)
    return summarize_run(seen, ledger.chosen_row, conditions, visit.remarks)


def _metric(registry: "Registry", ledger: Ledger, samples: _Samples) -> "MetricRecord | None":
    """Return the ledger's metric, or the task's where that one compares with the source, which is not here."""
    if not samples.has_labels:
        return None
    name = ledger.metric if ledger.metric and registry.metric(ledger.metric).needs_labels else None
    return choose_metric(samples.model, samples.data, name, registry)
