"""ONNX Runtime as a target. Registers `onnx-cpu`; nothing heavy is imported until it is used."""

from collections.abc import Sequence

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import TargetRecord, Tier

EDGESMITH_API = 1


@hookimpl
def register_targets() -> Sequence[TargetRecord]:
    """Return the targets that run on ONNX Runtime."""
    return (
        TargetRecord(
            name="onnx-cpu",
            version="0.2.0",
            summary="ONNX Runtime on the processor of this or a like machine; the numeric reference of all targets.",
            entry="edgesmith_onnxruntime.cpu:OnnxCpu",
            # The machine that compiles is not known to be the one that the artifact is for, so its latencies are a
            # reference; the device tier is for a runner that names the device it measures on.
            tier=Tier.REFERENCE,
            packages=("onnxruntime>=1.22", "onnxscript>=0.5"),
        ),
    )
