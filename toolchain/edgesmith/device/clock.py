"""The clock on a device: times the stages of a compile where they would run, in the form in which they would."""

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.device import faults
from edgesmith.device.address import Address, open_transport
from edgesmith.device.depot import Depot
from edgesmith.device.facts import SPEED_FACTS, TimesReply, require_one_state
from edgesmith.device.insistence import insist
from edgesmith.device.plan import DevicePlan
from edgesmith.device.remote import probe_device, time_in_turns
from edgesmith.device.runtimes import (
    ONNX_RUNTIME,
    TRTEXEC,
    tier_of,
    unlisted_version,
    usable_runtime,
)
from edgesmith.device.transport import Workspace, workspace
from edgesmith.device.worker.archive import ArrayArchive
from edgesmith.errors import ConnectionLostError, RejectedModelError
from edgesmith.files import hash_file
from edgesmith.measure.runner import CPU_PROVIDER, Clock, Conditions, LatencyComparison, LatencyPlan, name_shapes
from edgesmith.profile import Profile
from edgesmith.progress import Progress
from edgesmith_calibration.sources import Batch

if TYPE_CHECKING:
    import numpy as np

_RESTARTED = (
    "The device restarted since the timing before. A lock of clocks that it does not tell of, such as that of "
    "nvidia-smi, is gone, and times from before may be of another speed."
)
_TRTEXEC_VERSION = re.compile(r"\[TensorRT v([^\]]+)\]")


@contextmanager
def open_clock(
    address: Address, profile: Profile | None, plan: DevicePlan, progress: Progress, *, as_written: bool
) -> "Iterator[DeviceClock]":
    """Connect to a device and leave it clean in the end.

    Args:
        address: The device.
        profile: The device that the target is for; None where it has none.
        plan: How models run there.
        progress: Shows what is going on.
        as_written: Whether ONNX Runtime, where it runs the models, stands in for another runtime.

    Raises:
        DeviceError: The device cannot be reached, is of another architecture, or lacks something.
    """
    with (
        closing(open_transport(address, directory=plan.directory, python=plan.python)) as transport,
        tempfile.TemporaryDirectory(prefix="edgesmith-clock-") as scratch,
    ):
        with workspace(transport) as place:
            yield DeviceClock(place, Path(scratch), profile, plan, progress, as_written=as_written)
        for remark in place.remarks:
            logging.getLogger(__name__).warning(remark)


class DeviceClock(Clock):
    """Times models on a device, all of one comparison in turns.

    Args:
        place: The working directory there.
        scratch: A directory here for what goes there and comes back.
        profile: The device that the target is for.
        plan: How models run there.
        progress: Shows what is going on.
        as_written: Whether ONNX Runtime, where it runs the models, stands in for another runtime.

    Raises:
        DeviceError: The device is of another architecture, or lacks something.
    """

    def __init__(
        self,
        place: Workspace,
        scratch: Path,
        profile: Profile | None,
        plan: DevicePlan,
        progress: Progress,
        *,
        as_written: bool = False,
    ) -> None:
        self._place, self._scratch, self._plan, self._progress = place, scratch, plan, progress
        transport = place.transport
        with progress.stage(f"asking {transport.address} what it is"):
            self._probe = insist(place, lambda: probe_device(place, scratch), plan.reconnects, progress)
        self._boot_id = self._probe.state.boot_id
        self._runtime = usable_runtime(transport, self._probe, profile, plan.runtime)
        self._in_session = self._runtime == ONNX_RUNTIME
        self.times_lowered = not self._in_session
        self._as_written = as_written
        self._provider = CPU_PROVIDER if self._in_session else "GPU"
        self.tier, reason = tier_of(profile, self._probe, self._runtime, self._provider, is_local=transport.is_local)
        self._cool_below = plan.cool_below if self._probe.state.temperatures_celsius else 0.0
        self._version = insist(place, self._version_there, plan.reconnects, progress)
        remarks = {
            f"Times are from {transport.address}: {reason}.": True,
            unlisted_version(profile, self._probe, self._runtime, self._version): True,
            "All stages were timed lowered, the source too.": self.times_lowered,
            "The device tells no temperature, so it was not waited for.": self._cool_below != plan.cool_below,
        }
        self._notes = tuple(remark for remark, holds in remarks.items() if remark and holds)
        self._depot = Depot(place, self._probe, self._runtime, plan, progress)

    @property
    def facts(self) -> dict[str, str | int]:
        """Return its address, and what it tells of itself."""
        return {"address": self._place.transport.address, **self._probe.facts()}

    def conditions(self, inputs: "Mapping[str, np.ndarray]") -> Conditions:
        """Return the conditions under which `inputs` are timed: also power mode, clocks, system and driver."""
        facts = self._probe.facts()
        told = {name: facts[name] for name in SPEED_FACTS if name in facts}
        extra: dict[str, str | int | float] = {"device": self._place.transport.address, **told}
        extra |= self._probe.state.conditions
        if self._cool_below:
            extra["cool_below"] = self._cool_below
        if not self._in_session:
            extra["cuda_graph"] = "used" if self._plan.cuda_graphs else "not used"
        return Conditions(
            runtime=self._version,
            provider=self._provider,
            optimization="engine" if not self._in_session else "basic" if self._as_written else "all",
            threads=self._threads if self._in_session else None,
            batch=Batch(inputs).size,
            shapes=name_shapes(inputs),
            processor=self._probe.machine,
            extra=extra,
        )

    def latency(
        self, entries: Mapping[str, Path], inputs: "Mapping[str, np.ndarray]", plan: LatencyPlan | None = None
    ) -> LatencyComparison:
        """Time the model files of all stages in turns, all loaded at once on the device.

        Raises:
            DeviceError: The device was lost, or no model runs there.
            MeasurementError: Power mode or clocks of the device changed since the start.
        """
        batch = self._write_batch(inputs)

        def work() -> tuple[dict[str, str], dict[str, str], TimesReply]:
            try:
                self._depot.make_room()
                self._depot.put_batch(batch)
                models, failures = self._put_all(entries)
                # Labels of the same content share its times.
                request = self._request(list(dict.fromkeys(models.values())), batch, inputs)
                request["plan"] = asdict(plan or LatencyPlan())
                with self._progress.stage(f"timing on {self._place.transport.address}"):
                    reply = time_in_turns(self._place, request, self._scratch, self._plan.timeout)
            except ConnectionLostError:
                self._depot.forget()
                raise
            return models, failures, reply

        models, failures, reply = insist(self._place, work, self._plan.reconnects, self._progress)
        require_one_state(self._place.transport.address, self._probe.state, reply.before, reply.after)
        return self._comparison(models, failures, reply, self.conditions(inputs))

    @property
    def _threads(self) -> int:
        return self._plan.threads or self._probe.usable_cores

    def _version_there(self) -> str:
        """Return the runtime as the worker calls it."""
        if self._runtime == TRTEXEC:
            # Its help begins with its version, as everything that it says.
            said = self._place.transport.run([self._probe.trtexec, "--help"])
            found = _TRTEXEC_VERSION.search(said.stdout + said.stderr)
            return f"trtexec of TensorRT {found[1] if found else 'unknown'}"
        name = ONNX_RUNTIME if self._in_session else "tensorrt"
        return f"{name} {self._probe.modules[self._runtime].version}"

    def _write_batch(self, inputs: "Mapping[str, np.ndarray]") -> Path:
        """Write one batch to a file that is named by its content."""
        path = self._scratch / "batch.npz"
        with ArrayArchive(path) as archive:
            archive.add(0, dict(inputs))
        return path.rename(self._scratch / f"batch-{hash_file(path)[:32]}.npz")

    def _put_all(self, entries: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, str]]:
        """Have all models there; return the path of each by its label, and why the others cannot be built."""
        models: dict[str, str] = {}
        errors: dict[str, RejectedModelError] = {}
        for label, entry in entries.items():
            try:
                models[label] = self._depot.put(label, entry)
            except RejectedModelError as error:
                errors[label] = error
        if not models:
            raise next(iter(errors.values()))
        return models, {label: error.what for label, error in errors.items()}

    def _request(self, files: list[str], batch: Path, inputs: "Mapping[str, np.ndarray]") -> dict[str, object]:
        return {
            "models": {file: file for file in files},
            "runtime": self._runtime,
            "batch": batch.name,
            "inputs": list(inputs),
            "threads": self._threads,
            "as_written": self._as_written,
            "cool_below_celsius": self._cool_below,
            "cuda_graphs": self._plan.cuda_graphs and not self._in_session,
        }

    def _comparison(
        self, models: dict[str, str], failures: dict[str, str], reply: TimesReply, conditions: Conditions
    ) -> LatencyComparison:
        place = f"it does not run on {self._place.transport.address}"
        fails = {label: f"{place}: {reply.failures[file]}" for label, file in models.items() if file in reply.failures}
        models = {label: file for label, file in models.items() if label not in fails}
        missing = [label for label, file in models.items() if file not in reply.runs or file not in reply.rounds]
        if missing:
            raise faults.failed(self._place.transport.address, "the worker", f"it has no times of {missing[0]}")
        if len({len(rounds) for rounds in reply.rounds.values()}) > 1:
            raise faults.failed(self._place.transport.address, "the worker", "it has not the same rounds of all models")
        if reply.before.boot_id != self._boot_id:
            self._boot_id = reply.before.boot_id
            self._place.remarks.append(_RESTARTED)
        remarks, self._place.remarks[:] = list(self._place.remarks), []
        return LatencyComparison(
            runs={label: reply.runs[file] for label, file in models.items()},
            rounds={label: reply.rounds[file] for label, file in models.items()},
            tier=self.tier,
            conditions=replace(conditions, runtime=reply.runtime, extra={**conditions.extra, **reply.graph_conditions}),
            waiting_share=reply.waiting_share,
            notes=(*self._notes, *remarks, *reply.remarks),
            failures=failures | fails,
        )
