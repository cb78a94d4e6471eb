"""What a built engine turned out to be: layers with their precision and time, and what was found in them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from edgesmith.errors import TargetError

LARGEST_BYTES = 64_000_000
"""Descriptions of engines beyond this are refused before they are read."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineLayer(_Record):
    """One layer of an engine, which may hold many nodes of the graph."""

    name: str
    kind: str
    """The runtime's own word for what it is."""
    precision: str
    """Number format that it reads, such as int8; empty where the runtime does not tell."""
    nodes: tuple[str, ...] = ()
    """Nodes of the graph that it computes, as far as the runtime names them."""
    time_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class EngineFinding(_Record):
    """One hazard in an engine."""

    rule: str
    hazard: str
    fix: str
    layers: tuple[str, ...] = ()


class EngineReport(_Record):
    """Everything that is known about an engine."""

    layers: tuple[EngineLayer, ...]
    findings: tuple[EngineFinding, ...] = ()

    @property
    def total_ms(self) -> float | None:
        """Sum of the times of all layers; None where none was timed."""
        times = [layer.time_ms for layer in self.layers if layer.time_ms is not None]
        return sum(times) if times else None

    def slowest(self, count: int = 10) -> tuple[EngineLayer, ...]:
        """Return the layers that took longest, those without a time left out."""
        timed = [layer for layer in self.layers if layer.time_ms is not None]
        return tuple(sorted(timed, key=lambda layer: -(layer.time_ms or 0.0))[:count])

    def by_precision(self) -> Mapping[str, tuple[int, float | None]]:
        """Return precision to the number of its layers and their time in milliseconds, most layers first."""
        groups: dict[str, list[EngineLayer]] = {}
        for layer in self.layers:
            groups.setdefault(layer.precision or "not told", []).append(layer)
        ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
        return {name: (len(layers), _sum(layers)) for name, layers in ordered}

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield what is to be said as pairs of name and text."""
        total = self.total_ms
        for precision, (count, time_ms) in self.by_precision().items():
            share = f", {time_ms:.3f} ms, {time_ms / total:.0%} of the time" if time_ms is not None and total else ""
            yield f"layers in {precision}", f"{count}{share}"
        for layer in self.slowest(5):
            share = f" ({(layer.time_ms or 0) / total:.0%})" if total else ""
            yield f"{layer.time_ms:.3f} ms{share}", f"{layer.kind} in {layer.precision or 'not told'}: {layer.name}"


def _sum(layers: list[EngineLayer]) -> float | None:
    times = [layer.time_ms for layer in layers if layer.time_ms is not None]
    return sum(times) if times else None


def read_description(path: Path) -> str:
    """Return the text of a file that describes an engine.

    Raises:
        TargetError: It cannot be read, or is larger than any description.
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST_BYTES else None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    if content is None:
        raise _unreadable(path, f"it is larger than {LARGEST_BYTES} bytes")
    return content.decode("utf-8", errors="replace")


def _unreadable(path: Path, reason: str) -> TargetError:
    return TargetError(
        f"{path} cannot be read: {reason}.",
        expected="the file in which the runtime described its engine",
        why="What an engine does is taken from there and from nowhere else.",
        fix="Check the path; docs/targets/jetson.md shows how to export it.",
    )
