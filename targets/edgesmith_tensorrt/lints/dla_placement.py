"""What a DLA does not run falls back to the GPU, and every change between the two costs a reformat and a wait."""

from collections.abc import Iterator

from edgesmith.frontends.fixed_dimensions import open_dimensions
from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.dialect import TensorRTDialect
from edgesmith_tensorrt.dla import OPEN_SIZES, place


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
        _fix_sizes(model)
        if OPEN_SIZES in placement.fallbacks
        else "Build for the GPU where most nodes fall back (leave `core` out of the profile).",
        placement.accelerated if len(placement.accelerated) < fallen else (),
    )
    if placement.loadables > dla.loadables:
        yield Finding(
            f"The network falls into {placement.loadables} parts, and a DLA core holds {dla.loadables}.",
            "Build for the GPU, or change the operators that cut the network.",
        )
    for reason, nodes in placement.fallbacks.items():
        fix = _fix_sizes(model) if reason == OPEN_SIZES else "Choose an operator that the DLA runs, if it pays."
        yield Finding(f"{len(nodes)} nodes run on the GPU: {reason}.", fix, nodes)


def _fix_sizes(model: Model) -> str:
    """Return how to give the open dimensions a size when the source is compiled."""
    words = [f"--shape {name}={1 if axis == 0 else 'SIZE'}" for name, (_, axis) in open_dimensions(model.ir).items()]
    if not words:
        return "Export the model with fixed sizes."
    return (
        f"Fix the sizes of the inputs: `edgesmith compile` with {' '.join(words)}. Then lint the graph in the artifact."
    )
