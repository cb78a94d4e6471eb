"""Device profiles: what one device is and what its runtime executes, as data with a source for each group of facts.

A profile is a TOML file. Plugins ship one per device; users add their own, which extends one of these:

    extends = "jetson-orin-nano"
    name = "my-board"
    summary = "Our carrier board with 4 GB."

    [device]
    memory_bytes = 4_000_000_000
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgesmith.errors import TargetError
from edgesmith.host.names import suggest

Format = Literal["float32", "float16", "bfloat16", "int8", "uint8", "int4-weights", "int2-weights", "float8", "float4"]

_LARGEST_BYTES = 100_000


def _require_specifier(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(f"{text!r} is no range of versions such as >=10.3,<11") from error
    return text


VersionRange = Annotated[str, AfterValidator(_require_specifier)]
"""A requirement specifier as in Python packages."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Sourced(_Facts):
    source: str = Field(min_length=1, description="Where these facts come from.")


class Device(_Sourced):
    """The hardware."""

    processor: str = Field(description="Name of the chip or family.")
    memory_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Memory that the accelerator can use; None where devices differ.",
    )
    unified_memory: bool = Field(default=False, description="Whether the processor shares this memory.")
    compute_capability: str | None = Field(
        default=None, pattern=r"^\d+\.\d$", description="Of an NVIDIA GPU, such as 8.7."
    )
    machines: tuple[str, ...] = Field(
        default=(), description="Words in names by which such machines or chips know themselves, such as Orin Nano."
    )
    systems: tuple[str, ...] = Field(
        default=(), description="Operating systems of it, such as Android or iOS; empty where any will do."
    )
    architectures: tuple[str, ...] = Field(
        default=(), description="What uname -m prints on it, such as aarch64; empty where several systems carry it."
    )


class Formats(_Sourced):
    """Number formats that the device and its runtime execute."""

    hardware: tuple[Format, ...] = Field(description="Formats with arithmetic or storage support.")
    absent: Mapping[str, str] = Field(
        default_factory=dict, description="Format to why it is missing and what to use instead."
    )
    tensors: Literal["float16", "bfloat16"] = Field(
        default="float16", description="Type of 16 bits that float values get where a runtime wants it in the graph."
    )


class Alignment(_Sourced):
    """Channel counts that the fast kernels need, by format."""

    float16: int = Field(default=1, ge=1)
    int8: int = Field(default=1, ge=1)


class Runtime(_Sourced):
    """One range of runtime versions that the device can run."""

    name: str = Field(description="Name of the runtime, such as TensorRT.")
    versions: VersionRange = Field(min_length=1, description="Versions, as a requirement specifier such as >=10.3,<11.")
    opset: int = Field(ge=9, description="Highest ONNX opset that all of these versions read.")
    platform: str = Field(default="", description="Software release that brings it, such as JetPack 6.2.")
    provider: str = Field(default="", description="Execution provider of ONNX Runtime, such as CPUExecutionProvider.")


class DeepLearningAccelerator(_Sourced):
    """NVIDIA's fixed-function accelerator beside the GPU."""

    cores: int = Field(ge=1)
    formats: tuple[Format, ...]
    largest_batch: int = Field(ge=1)
    largest_dimension: int = Field(ge=1)
    loadables_per_core: int = Field(ge=1)
    layers: tuple[str, ...] = Field(description="ONNX operators that it runs; all others fall back to the GPU.")
    versions: tuple[VersionRange, ...] = Field(default=(), description="Ranges of runtime versions that can use it.")
    core: int | None = Field(
        default=None, ge=0, description="Core to build for; None builds for the GPU. Set it in a profile of your own."
    )

    @model_validator(mode="after")
    def _require_core(self) -> Self:
        if self.core is not None and self.core >= self.cores:
            raise ValueError(f"core {self.core} of {self.cores}: cores count from 0")
        return self


class HexagonArchitecture(_Facts):
    """One generation of Qualcomm's tensor processor. A context binary is for one of them."""

    name: str = Field(pattern=r"^v\d+$", description="Such as v75.")
    soc_model: int = Field(ge=1, description="Qualcomm's number of a chip of this generation, to compile for.")
    chips: tuple[str, ...] = Field(default=(), description="Chips that have it, such as SM8650.")
    float16: bool = Field(default=True, description="Whether it computes in float16 too.")


class Hexagon(_Sourced):
    """Qualcomm's Hexagon Tensor Processor (HTP)."""

    architectures: tuple[HexagonArchitecture, ...] = Field(min_length=1)


class PowerMode(_Facts):
    """One setting of `nvpmodel`."""

    name: str
    identifier: int | None = Field(default=None, description="Number to pass to nvpmodel -m, where documented.")
    watts: float | None = Field(default=None, gt=0, description="Power budget; None where there is no limit.")


class PowerModes(_Sourced):
    """The power settings of a device. Numbers taken in different modes are not comparable."""

    modes: tuple[PowerMode, ...]


class Profile(_Facts):
    """One device with its runtime. Every group of facts names its source."""

    name: str = Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
    summary: str = Field(min_length=1)
    device: Device
    formats: Formats
    runtimes: tuple[Runtime, ...] = Field(min_length=1)
    alignment: Alignment | None = None
    dla: DeepLearningAccelerator | None = None
    hexagon: Hexagon | None = None
    power: PowerModes | None = None

    @property
    def opset(self) -> int:
        """The highest opset that every listed runtime version reads."""
        return min(runtime.opset for runtime in self.runtimes)

    def has(self, form: Format) -> bool:
        """Return whether the device executes a format."""
        return form in self.formats.hardware


def load_profile(location: str) -> Profile:
    """Return the profile at "package:resource", or in a file that extends none.

    Raises:
        TargetError: It cannot be read, or a fact is missing or wrong.
    """
    return parse_profile(read_facts(location), location)


def read_facts(location: str | Path) -> dict[str, Any]:
    """Return the raw content of a profile: "package:resource", or the path of a file.

    Raises:
        TargetError: It cannot be read, or is neither TOML nor, where its name ends so, JSON.
    """
    package, separator, resource = str(location).partition(":")
    try:
        file = resources.files(package) / resource if separator and package.isidentifier() else Path(location)
        content = file.read_bytes()
        if len(content) > _LARGEST_BYTES:
            raise ValueError(f"it has {len(content)} bytes")
        facts: dict[str, Any] = (json if file.name.endswith(".json") else tomllib).loads(content.decode())
        if not isinstance(facts, dict):
            raise ValueError("it is no table")
        return facts
    except (OSError, ModuleNotFoundError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TargetError(
            f"Profile {location} cannot be read: {reason}.",
            expected=f"a TOML file of at most {_LARGEST_BYTES} bytes",
            why="The profile says what the device can run.",
            fix="Check the path and the syntax; docs/targets/tensorrt.md shows an example.",
        ) from error


def parse_profile(facts: Mapping[str, Any], location: str | Path) -> Profile:
    """Return `facts` as a profile.

    Raises:
        TargetError: A fact is missing, unknown or of the wrong type; the message names the first.
    """
    try:
        return Profile.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the top level"
        fields = _fields_at(first["loc"])
        unknown = first["type"] == "extra_forbidden"
        raise TargetError(
            f"In profile {location}, {place}: {first['msg'].lower()}.",
            expected=f"the fields {', '.join(fields)}",
            why="A misread fact would produce an artifact that the device cannot run.",
            fix=suggest(str(first["loc"][-1]), fields) if unknown else "Correct it as docs/targets/tensorrt.md says.",
        ) from error


def _fields_at(place: tuple[int | str, ...]) -> Iterable[str]:
    """Return the fields of the table in which `place` lies; a list holds tables of one kind."""
    table: type[BaseModel] = Profile
    for part in place[:-1]:
        kind = table.model_fields[part].annotation if part in table.model_fields else None
        tables = [each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, BaseModel)]
        table = tables[0] if tables else table
    return table.model_fields


def with_sources(facts: Mapping[str, Any], changes: Mapping[str, Any], location: str | Path) -> dict[str, Any]:
    """Return `facts` with a source of their own for tables, also in lists, where `changes` gives facts and no source.

    Args:
        facts: A profile with the changes in it.
        changes: What a user's file says.
        location: That file.
    """
    sourced = dict(facts)
    for name, table in changes.items():
        if isinstance(table, Mapping) and table and "source" not in table and isinstance(sourced.get(name), Mapping):
            rest = f"; all else: {sourced[name]['source']}" if "source" in sourced[name] else ""
            sourced[name] = {**sourced[name], "source": f"{Path(location).name} says {', '.join(table)}{rest}"}
        if isinstance(table, list):  # Such a list replaces the other as a whole.
            sourced[name] = [
                {"source": f"{Path(location).name} says {', '.join(each)}", **each} if isinstance(each, dict) else each
                for each in table
            ]
    return sourced


def extend(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, table by table; lists are replaced as a whole."""
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        merged[name] = extend(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
