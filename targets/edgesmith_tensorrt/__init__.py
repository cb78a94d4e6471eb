"""TensorRT as a target, one for each device profile. Nothing heavy is imported until one of them is used."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import LintRecord, TargetRecord, Tier

EDGESMITH_API = 1

_LINTS = {
    "zero-points": "Zero points other than 0, where codes must be symmetric.",
    "code-types": "Codes of a type that the device does not have.",
    "whole-blocks": "Blocks of codes that do not divide a weight.",
    "integer-bias": "Biases in int32, where they must be float.",
    "integer-operators": "Operators on codes, where quantization must be written as pairs.",
    "channel-alignment": "Channel counts that do not fill the tensor cores.",
    "doubled-pairs": "Values that are quantized twice, or for nobody.",
    "unfused-pairs": "Pairs that cannot fuse into the node behind them.",
    "type-changes": "Many casts between float types.",
    "tensor-types": "Values of types that the device or TensorRT lacks.",
    "dynamic-shapes": "Open dimensions without an optimization profile, and sizes that the data decides.",
    "dla-placement": "What a DLA leaves to the GPU, and the transitions between the two.",
}
_PROFILES = Path(__file__).with_name("profiles")


@hookimpl
def register_targets() -> Sequence[TargetRecord]:
    """Return a target for each profile of this package."""
    return tuple(_record(path) for path in sorted(_PROFILES.glob("*.toml")))


def _record(path: Path) -> TargetRecord:
    return TargetRecord(
        name=path.stem,
        version="0.1.0",
        summary=tomllib.loads(path.read_text(encoding="utf-8"))["summary"],
        entry="edgesmith_tensorrt.target:TensorRT",
        # The device is not here: outputs come from the numeric reference, and times only from the device itself.
        runner="reference",
        tier=Tier.REFERENCE,
        profile=f"{__name__}:profiles/{path.name}",
    )


@hookimpl
def register_lints() -> Sequence[LintRecord]:
    """Return the rules of this package; each asks the dialect whether it has a say."""
    return tuple(
        LintRecord(
            name=name,
            version="0.1.0",
            summary=summary,
            entry=f"edgesmith_tensorrt.lints.{name.replace('-', '_')}:find",
        )
        for name, summary in _LINTS.items()
    )
