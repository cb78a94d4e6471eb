"""Validates an artifact where it will run: copies it there, times it, and holds its outputs against the simulation."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.api import choose_metric
from edgesmith.data import RandomInputs, RunData, choose_data, fixed_batch_size
from edgesmith.device.comparison import compare_outputs
from edgesmith.device.facts import Probe, Reply
from edgesmith.device.plan import ValidationPlan
from edgesmith.device.record import DeviceRun
from edgesmith.device.remote import build_engine, probe_device, run_worker
from edgesmith.device.runtimes import ONNX_RUNTIME, best_runtime, require_architecture, require_runtime, tier_of
from edgesmith.device.shipment import ENGINE, Shipment, load_model, read_shipment
from edgesmith.device.summary import Seen, conditions_of, summarize_run
from edgesmith.device.transport import Transport, Workspace, workspace
from edgesmith.device.worker import ArrayArchive
from edgesmith.errors import DataError, MeasurementError
from edgesmith.host.targets import find_target
from edgesmith.ledger import Ledger, load_ledger
from edgesmith.model import Model
from edgesmith.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from edgesmith.host.records import MetricRecord
    from edgesmith.host.registry import Registry
    from edgesmith_calibration.sources import Batch


@dataclass(frozen=True, slots=True)
class _Samples:
    """What the device runs."""

    batches: "tuple[Batch, ...]"
    model: Model
    data: RunData
    description: str

    @property
    def has_labels(self) -> bool:
        """Whether a metric can be computed from them."""
        return self.data.evaluation is not None and self.data.evaluation.has_labels


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
    address = transport.address
    shipment, ledger = read_shipment(directory), load_ledger(directory)
    _, target = find_target(registry, plan.target or shipment.target)
    samples = _open_samples(shipment, data, plan)
    remarks: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgesmith-validate-") as scratch:
        with workspace(transport, keep=plan.keep) as place:
            with progress.stage(f"asking {address} what it is"):
                probe = probe_device(place, Path(scratch))
            if not transport.is_local:
                require_architecture(address, probe, target.profile)
            runtime = plan.runtime or best_runtime(target.profile, probe)
            require_runtime(address, probe, runtime)
            with progress.stage(f"copying {shipment.size_bytes / 1e6:.1f} MB to {address}"):
                _send(place, shipment, samples, Path(scratch))
            if runtime != ONNX_RUNTIME:
                with progress.stage(f"building the engine on {address}"):
                    remarks.append(build_engine(place, runtime, probe, plan.timeout))
            request = _request(plan, shipment, samples, probe, runtime)
            with progress.stage(f"running on {address}"):
                reply, outputs = run_worker(place, request, Path(scratch), plan.timeout)
        remarks += place.remarks
        require_one_power_mode(address, reply)
        with progress.stage("comparing with the simulation"):
            metric = _metric(registry, ledger, samples)
            make_metric = registry.load(metric) if metric else None
            comparison = compare_outputs(shipment.entry, samples.batches, outputs, reply.outputs, make_metric)
    tier, reason = tier_of(target.profile, probe, runtime, is_local=transport.is_local)
    unit = metric.unit if metric else ""
    seen = Seen(address, tier, reason, probe, reply, comparison, samples.description, unit)
    first = samples.batches[0]
    threads = int(str(request["threads"])) if runtime == ONNX_RUNTIME else None
    return summarize_run(seen, ledger.chosen_row, conditions_of(seen, first.inputs, first.size, threads), remarks)


def _open_samples(shipment: Shipment, data: "str | Path | None", plan: ValidationPlan) -> _Samples:
    """Return the evaluation batches, or random inputs where no data is given."""
    choice = choose_data(data)
    model = choice.equip(load_model(shipment.entry))
    opened = choice.open(model)
    source = opened.evaluation or RandomInputs(model)
    size = fixed_batch_size(model) or plan.batch_size
    batches = tuple(source.take(plan.samples).batches(size))
    if not batches:
        raise DataError(
            f"There is no evaluation sample in {source.description}.",
            expected="at least one sample",
            why="The device is compared with the simulation on samples.",
            fix="Check the file, or leave --data out to compare on random inputs.",
        )
    return _Samples(batches, model, opened, source.description)


def _send(place: Workspace, shipment: Shipment, samples: _Samples, scratch: Path) -> None:
    with ArrayArchive(scratch / "inputs.npz") as archive:
        for index, batch in enumerate(samples.batches):
            archive.add(index, dict(batch.inputs))
    for file in (*shipment.files, scratch / "inputs.npz"):
        place.push(file, file.name)


def _request(
    plan: ValidationPlan, shipment: Shipment, samples: _Samples, probe: Probe, runtime: str
) -> dict[str, object]:
    return {
        "model": shipment.entry.name if runtime == ONNX_RUNTIME else ENGINE,
        "runtime": runtime,
        "inputs": list(samples.batches[0].inputs),
        "batches": len(samples.batches),
        "threads": plan.threads or probe.usable_cores,
        "warmup_runs": plan.warmup_runs,
        "seconds": plan.seconds,
        "fewest_runs": plan.fewest_runs,
        "most_runs": plan.most_runs,
        "cool_below_celsius": plan.cool_below,
    }


def _metric(registry: "Registry", ledger: Ledger, samples: _Samples) -> "MetricRecord | None":
    """Return the ledger's metric, or the task's where that one compares with the source, which is not here."""
    if not samples.has_labels:
        return None
    name = ledger.metric if ledger.metric and registry.metric(ledger.metric).needs_labels else None
    return choose_metric(samples.model, samples.data, name, registry)


def require_one_power_mode(address: str, reply: Reply) -> None:
    """Check that the power mode was the same before and after the timing.

    Raises:
        MeasurementError: It was changed.
    """
    before, after = reply.before.power_mode_name, reply.after.power_mode_name
    if before != after:
        raise MeasurementError(
            f"The power mode of {address} changed from {before or 'none'} to {after or 'none'} while it was timed.",
            expected="one power mode for all runs",
            why="Times of different power modes are not comparable, and their median means nothing.",
            fix="Set the mode with `nvpmodel -m`, let nothing change it, and validate again.",
        )
