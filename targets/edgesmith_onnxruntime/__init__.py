"""ONNX Runtime as a target: processors, phones, Qualcomm's tensor processor. Nothing heavy is imported until used."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import LintRecord, ReportSection, TargetRecord, Tier

EDGESMITH_API = 1

_PROFILES = Path(__file__).with_name("profiles")
_CLASSES: Mapping[str, str] = {
    "onnx-cpu": "cpu:OnnxCpu",
    "android-cpu": "mobile.target:AndroidCpu",
    "android-qnn": "qnn.target:AndroidQnn",
    "ios-coreml": "mobile.target:IosCoreMl",
}
_LINTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("processor-operators", "Operators that were written for one processor.", ()),
    ("core-ml-placement", "Nodes that Core ML does not take.", ("ios-coreml",)),
    ("tensor-processor", "What stays off Qualcomm's tensor processor.", ("android-qnn",)),
)


@hookimpl
def register_targets() -> Sequence[TargetRecord]:
    """Return the targets that run on ONNX Runtime."""
    return tuple(
        TargetRecord(
            name=name,
            version="0.3.0",
            summary=tomllib.loads((_PROFILES / f"{name}.toml").read_text(encoding="utf-8"))["summary"],
            entry=f"{__name__}.{entry}",
            # Times of this machine are a reference for one like it, and say nothing about a phone: there only outputs
            # are taken here. The device tier is for a runner that names the device it measures on.
            runner="local" if name == "onnx-cpu" else "reference",
            tier=Tier.REFERENCE,
            packages=("onnxruntime>=1.22", "onnxscript>=0.5"),
            profile=f"{__name__}:profiles/{name}.toml",
        )
        for name, entry in _CLASSES.items()
    )


@hookimpl
def register_lints() -> Sequence[LintRecord]:
    """Return the rules about phones, and about what only one processor loads."""
    return tuple(
        LintRecord(
            name=name,
            version="0.1.0",
            summary=summary,
            entry=f"{__name__}.lints.{name.replace('-', '_')}:find",
            targets=targets,
        )
        for name, summary, targets in _LINTS
    )


@hookimpl
def extend_report(directory: str) -> Sequence[ReportSection]:
    """Return a section about what ships to phones, for artifacts that hold it."""
    from edgesmith_onnxruntime.mobile.report import phone_sections

    return phone_sections(Path(directory))
