"""What a DLA does not run falls back to the GPU, and every change between the two costs a reformat and a wait."""

from collections.abc import Iterator

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.dialect import TensorRTDialect
from edgesmith_tensorrt.dla import place


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield what runs where and how often values cross, and a finding for each reason to fall back."""
    dla = dialect.accelerator if isinstance(dialect, TensorRTDialect) else None
    if dla is None:
        return
    placement = place(model.graph, dla)
    fallen = sum(map(len, placement.fallbacks.values()))
    if not fallen:
        return
    total = fallen + len(placement.accelerated)
    yield Finding(
        f"{fallen} of {total} nodes fall back from DLA core {dla.core} to the GPU: {placement.loadables} parts on the "
        f"DLA, {placement.transitions} transitions.",
        "Build for the GPU where most nodes fall back (leave `core` out of the profile).",
        placement.accelerated if len(placement.accelerated) < fallen else (),
    )
    if placement.loadables > dla.loadables:
        yield Finding(
            f"The network falls into {placement.loadables} parts, and a DLA core holds {dla.loadables}.",
            "Build for the GPU, or change the operators that cut the network.",
        )
    for reason, nodes in placement.fallbacks.items():
        yield Finding(
            f"{len(nodes)} nodes run on the GPU: {reason}.", "Choose an operator that the DLA runs, if it pays.", nodes
        )
