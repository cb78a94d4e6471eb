"""Models of a compile on a device: each content is sent once, and its engine built once."""

import hashlib
from pathlib import Path

from edgesmith.device import faults
from edgesmith.device.facts import Probe
from edgesmith.device.plan import DevicePlan
from edgesmith.device.remote import build_engine
from edgesmith.device.runtimes import ONNX_RUNTIME, TRTEXEC
from edgesmith.device.shipment import BUILD_SCRIPT, ENGINE, stage_files
from edgesmith.device.transport import Workspace
from edgesmith.errors import DeviceError, RejectedModelError
from edgesmith.files import hash_file
from edgesmith.progress import Progress

MOST_MODELS = 16
"""Models that stay on the device with their engines, in case they are timed again."""


class Depot:
    """What is on one device.

    Args:
        place: The working directory there.
        probe: What the device is.
        runtime: Module or program that runs the models.
        plan: How models run there.
        progress: Shows what is going on.
    """

    def __init__(self, place: Workspace, probe: Probe, runtime: str, plan: DevicePlan, progress: Progress) -> None:
        self._place, self._probe, self._runtime, self._plan, self._progress = place, probe, runtime, plan, progress
        self._there: dict[str, None] = {}
        """Directories of models, in the order of their last use."""
        self._batches: set[str] = set()
        self._rejected: dict[str, RejectedModelError] = {}
        """Directories of models whose engine cannot be built, with the reason."""

    def put(self, label: str, entry: Path) -> str:
        """Have the model that a target built around `entry` on the device, ready to run; return its path there.

        Raises:
            RejectedModelError: Its engine cannot be built.
            DeviceError: It does not fit on the device.
        """
        files = stage_files(entry)
        folder = _folder_of(files)
        if folder in self._rejected:
            raise self._rejected[folder]
        if folder not in self._there:
            try:
                self._send(label, folder, files)
            except RejectedModelError as error:
                self._rejected[folder] = error
                self._place.remove(folder)
                raise
        self._there.pop(folder, None)
        self._there[folder] = None
        return f"{folder}/{entry.name if self._runtime == ONNX_RUNTIME else ENGINE}"

    def put_batch(self, batch: Path) -> None:
        """Have a file on the device whose name stands for its content."""
        # trtexec gets its inputs in a form of its own.
        if self._runtime != TRTEXEC and batch.name not in self._batches:
            self._place.push(batch, batch.name)
            self._batches.add(batch.name)

    def forget(self) -> None:
        """Look at each file again before it is taken for there, as after a lost connection."""
        self._there.clear()
        self._batches.clear()

    def make_room(self) -> None:
        """Remove what was not used for longest, where there is more than may stay."""
        while len(self._there) > MOST_MODELS:
            folder = next(iter(self._there))
            del self._there[folder]
            self._place.remove(folder)

    def _send(self, label: str, folder: str, files: tuple[Path, ...]) -> None:
        address = self._place.transport.address
        size = sum(file.stat().st_size for file in files)
        with self._progress.stage(f"copying {label}, {size / 1e6:.1f} MB, to {address}"):
            inside = self._place.inside(folder)
            for file in files:
                inside.push(file, file.name)
        if self._runtime == ONNX_RUNTIME:
            return
        if BUILD_SCRIPT not in {file.name for file in files}:
            raise faults.failed(address, f"building the engine of {label}", "its target wrote no build recipe")
        with self._progress.stage(f"building the engine of {label} on {address}"):
            try:
                build_engine(inside, self._runtime, self._probe, self._plan.timeout)
            except DeviceError as error:
                raise faults.rejected(error, label) from error


def _folder_of(files: tuple[Path, ...]) -> str:
    """Return a name that stands for the content of a model."""
    contents = "\n".join(f"{file.name} {hash_file(file)}" for file in files)
    return f"model-{hashlib.sha256(contents.encode()).hexdigest()[:32]}"
