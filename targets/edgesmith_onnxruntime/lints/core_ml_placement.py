"""Nodes that ONNX Runtime does not hand to Core ML. Between it and the processor tensors are copied."""

from collections.abc import Iterator

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_onnxruntime.mobile.placement import find_placement


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield what stays on the processor: operators that Core ML lacks, and what open shapes or ranks keep there."""
    placement = find_placement(model.ir, "Core ML program")
    if placement.supported == placement.nodes:
        return
    absent = [f"{operator} ({len(names)})" for operator, names in placement.unsupported.items()]
    reasons = [f"it has no {', '.join(absent)}"] if absent else []
    fix = "Little work on the processor costs little; else android-cpu needs no Core ML."
    if placement.high_rank:
        reasons.append(f"{placement.high_rank} have more than 5 dimensions")
    if placement.open_shapes:
        reasons.append(f"{placement.open_shapes} stand behind open sizes")
        fix = "Fix the inputs with --shape NAME=SIZE."
    parts = f"{placement.partitions} part{'' if placement.partitions == 1 else 's'}"
    yield Finding(
        f"Core ML takes {placement.supported} of {placement.nodes} nodes in {parts}: {'; '.join(reasons)}.",
        fix,
        tuple(name for names in placement.unsupported.values() for name in names),
    )
