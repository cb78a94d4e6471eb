"""Nodes that ONNX Runtime does not hand to Core ML. Each change between the two copies tensors."""

from collections.abc import Iterator

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_onnxruntime.mobile.placement import find_placement


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield what stays on the processor, operator by operator, and what open shapes keep there."""
    placement = find_placement(model.ir, "Core ML program")
    share = f"Core ML takes {placement.supported} of {placement.nodes} nodes in {placement.partitions} parts"
    for operator, names in placement.unsupported.items():
        yield Finding(
            f"{share}; {operator} is not among its operators, so {len(names)} nodes run on the processor.",
            "Little work there costs little; else compile for android-cpu, which needs no Core ML.",
            names,
        )
    if placement.open_shapes:
        yield Finding(
            f"{share}; {placement.open_shapes} nodes are out because sizes before them are open.",
            "Fix the inputs with --shape NAME=SIZE.",
        )
    if placement.high_rank:
        yield Finding(
            f"{share}; {placement.high_rank} nodes have more than 5 dimensions, or an input that has.",
            "Export the model with fewer dimensions, or let these nodes run on the processor.",
        )
