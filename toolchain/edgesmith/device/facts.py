"""What a device says about itself, checked and read. The texts come from the device's own tools, as they are."""

import re
from collections.abc import Mapping
from itertools import groupby, pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from edgesmith.errors import MeasurementError

_POWER_MODE = re.compile(r"^NV Power Mode:[ \t]*(\S.*?)[ \t\r]*$", re.MULTILINE)
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)mW/\d+mW")
_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_DRIVER = re.compile(r"Kernel Module[^\n]*?\s(\d+\.\d[\d.]*)\s")
_PROCESSOR = re.compile(r"^model name\s*:\s*(\S.*?)\s*$", re.MULTILINE)
SPEED_FACTS = ("system", "usable_cores", "jetson_linux", "jetpack", "gpu", "driver")
"""Facts of a machine that decide its speed beside its state."""
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "SYS5V", "VIN_SYS_5V0")
"""Rails that feed the whole module, by generation of board."""


Times = Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)]
"""Milliseconds."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Module(_Answer):
    """A Python module on the device."""

    version: str
    """Empty where it cannot be imported."""
    reason: str


class State(_Answer):
    """What changes from minute to minute."""

    power_mode: str
    """What `nvpmodel -q` prints; empty where there is none."""
    clocks: tuple[tuple[str, int, int, int], ...]
    """Policy or device with lowest, highest and present frequency, in the kernel's units."""
    gpu_limits: str = ""
    """What `nvidia-smi` prints of each GPU's settings: clocks, power and MIG. Empty where there is none."""
    temperatures_celsius: Mapping[str, float]
    memory_kib: Mapping[str, int]
    load_average: tuple[float, ...]
    boot_id: str = ""
    """What Linux calls the time since its last start; empty where it cannot be read."""

    @property
    def power_mode_name(self) -> str:
        """The power mode, such as "15W"; empty where the device has none or does not tell."""
        return read_power_mode(self.power_mode)

    @property
    def clocks_locked(self) -> bool | None:
        """Whether no clock can change, as after `jetson_clocks`; None where no clock can be read."""
        return all(low == high for _, low, high, _ in self.clocks) if self.clocks else None

    @property
    def conditions(self) -> dict[str, str]:
        """Power mode, clocks and what limits them, which must be equal for two times to be comparable."""
        locked = self.clocks_locked
        clocks = "unknown" if locked is None else "locked" if locked else "not locked"
        limits = {"clock_limits": self._clock_limits, "gpu_limits": self.gpu_limits.partition("\n")[0]}
        told = {name: limit for name, limit in limits.items() if limit}
        return {"power_mode": self.power_mode_name or "none", "clocks": clocks, **told}

    @property
    def _clock_limits(self) -> str:
        """Lowest and highest frequency, said once for neighbours with the same."""
        parts = []
        for (low, high), group in groupby(self.clocks, key=lambda clock: clock[1:3]):
            names = [name for name, *_ in group]
            place = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            parts.append(f"{place} {low}" if low == high else f"{place} {low}-{high}")
        return ", ".join(parts)

    @property
    def hottest_celsius(self) -> float | None:
        """The highest temperature of all zones."""
        return max(self.temperatures_celsius.values(), default=None)


class Probe(_Answer):
    """What a device is, and which runtimes it has."""

    status: str
    architecture: str
    system: str
    python: str
    board: str
    cpu_info: str
    usable_cores: int = Field(ge=1)
    jetson_release: str
    jetpack: str
    driver: str
    gpus: str
    android: str
    """Model of a phone; empty on other systems."""
    chip: str
    """Model of a phone's processor, such as SM8650."""
    cuda_runtime: bool
    trtexec: str
    """Path of trtexec; empty where there is none."""
    modules: Mapping[str, Module]
    state: State

    @property
    def machine(self) -> str:
        """The name by which the machine knows itself: board, phone or GPU, else the processor."""
        found = _PROCESSOR.search(self.cpu_info)
        return self.board or self.android or self.gpu.get("name", "") or (found[1] if found else self.architecture)

    @property
    def names(self) -> tuple[str, ...]:
        """All names by which the machine, its GPU and its chip know themselves."""
        return tuple(filter(None, (self.board, self.gpu.get("name", ""), self.chip, self.android)))

    @property
    def operating_system(self) -> str:
        """Android, Linux, iOS, Darwin or Windows. Python on Android may call the kernel's name."""
        return "Android" if self.android or self.chip else self.system.partition(" ")[0]

    @property
    def gpu(self) -> dict[str, str]:
        """Name, driver, compute capability and memory of the first GPU that nvidia-smi lists."""
        fields = [field.strip() for field in self.gpus.partition("\n")[0].split(",")]
        names = ("name", "driver", "compute_capability", "memory")
        return dict(zip(names, fields, strict=True)) if len(fields) == len(names) else {}

    def facts(self) -> dict[str, str | int]:
        """Return what makes numbers of this device comparable and repeatable; what it does not tell is left out."""
        driver = _DRIVER.search(self.driver)
        found: dict[str, str | int] = {
            "machine": self.machine,
            "architecture": self.architecture,
            "system": self.system,
            "python": self.python,
            "usable_cores": self.usable_cores,
            "memory_kib": self.state.memory_kib.get("MemTotal", 0),
            "free_memory_kib": self.state.memory_kib.get("MemAvailable", 0),
            "jetson_linux": read_jetson_release(self.jetson_release),
            "jetpack": self.jetpack,
            "chip": self.chip,
            "gpu": self.gpu.get("name", ""),
            "driver": self.gpu.get("driver", "") or (driver[1] if driver else ""),
            **{name: module.version for name, module in self.modules.items()},
        }
        return {name: fact for name, fact in found.items() if fact}


class _Timed(_Answer):
    """What the device says of everything that it times."""

    status: str
    before: State
    after: State
    waiting_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the time in which the timing thread could have run but had no processor."""
    cooling_seconds: float
    runtime: str
    provider: str
    optimization: str
    cuda_graph: str = ""
    """Used, or why not; empty where the runtime has none."""

    @property
    def graph_conditions(self) -> dict[str, str]:
        """Whether a run was one launch of a CUDA graph; nothing where the runtime has none."""
        return {"cuda_graph": "used" if self.cuda_graph == "used" else "not used"} if self.cuda_graph else {}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the times must know of the device."""
        remarks = []
        if self.cooling_seconds > 1:
            remarks.append(f"Waited {self.cooling_seconds:.0f} s for the device to cool down.")
        if self.cuda_graph not in ("", "used"):
            remarks.append(f"Timed without a CUDA graph, which {self.cuda_graph}.")
        if self.before.clocks_locked is False:
            remarks.append(
                "Clocks were not locked, so times depend on load and heat; on a Jetson run jetson_clocks first."
            )
        return tuple(remarks)


class TimesReply(_Timed):
    """What the device saw while it timed several models in turns."""

    runs: Mapping[str, Times]
    rounds: Mapping[str, Times]
    failures: Mapping[str, str] = Field(default_factory=dict)
    """Models that do not load or run, with the reason; they have no times."""


class Reply(_Timed):
    """What the device saw while it ran the model."""

    outputs: tuple[str, ...] = Field(min_length=1)
    times_ms: Times
    tegrastats: str
    clock_problem: str = ""
    """Why clocks were not locked though it was asked for."""
    engine_layers: str = ""
    engine_times: str = ""
    """The runtime's own description of an engine and of the times in it."""
    engine_problem: str = ""
    """Why an engine's layers could not be read."""
    taps: tuple[str, ...] = ()
    """Names of all outputs of the tapped graph."""
    loadgen: str = ""
    """Summary that MLPerf's load generator wrote."""


def require_one_state(address: str, *states: State) -> None:
    """Check that power mode and clocks were the same all the time.

    Raises:
        MeasurementError: They were changed.
    """
    for before, after in pairwise(state.conditions for state in states):
        for name in {**before, **after}:
            old, new = before.get(name, "unknown"), after.get(name, "unknown")
            if old != new:
                what = name.replace("_", " ")
                raise MeasurementError(
                    f"The {what} of {address} changed from {old} to {new} while it was timed.",
                    expected=f"one state of the {what} for all runs",
                    why="Times under different states are not comparable, and their median means nothing.",
                    fix="Set the power mode with nvpmodel and the clocks with jetson_clocks, and start again.",
                )


def read_power_mode(text: str) -> str:
    """Return the name in what `nvpmodel -q` printed; empty if there is none."""
    found = _POWER_MODE.search(text)
    return found[1] if found else ""


def read_jetson_release(text: str) -> str:
    """Return the release of Jetson Linux in /etc/nv_tegra_release, such as "36.4.3"; empty if there is none."""
    found = _RELEASE.search(text)
    return f"{found[1]}.{found[2]}" if found else ""


def read_power(text: str) -> dict[str, list[int]]:
    """Return the samples of each power rail in lines of tegrastats, in milliwatts."""
    rails: dict[str, list[int]] = {}
    for rail, milliwatts in _RAIL.findall(text):
        rails.setdefault(rail, []).append(int(milliwatts))
    return rails


def total_power(rails: Mapping[str, list[int]]) -> list[int]:
    """Return the samples of the rail that feeds the whole module, in milliwatts; empty where none is known."""
    return next((rails[name] for name in _TOTAL_RAILS if name in rails), [])
