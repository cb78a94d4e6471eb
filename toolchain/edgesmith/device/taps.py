"""Values inside the graph, on the device and in the simulation: where the gap between the two begins."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgesmith.device.worker.archive import read_batch
from edgesmith.execution.reference import ReferenceSession, with_taps
from edgesmith.graph.edit import constant_tensor
from edgesmith.ledger import LayerError, LedgerRow
from edgesmith.measure.divergence import Divergence
from edgesmith.serialization import write_onnx

if TYPE_CHECKING:
    from edgesmith_calibration.sources import Batch

TAPPED_FILE = "tapped.onnx"
MOST_BATCHES = 4
"""Every value is read out and sent, so a few batches must do."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_WEIGHT_RANK = 2


def choose_taps(model: ir.Model, row: LedgerRow, count: int) -> dict[str, str]:
    """Return value name to where it stands, in graph order, at most `count`, spread over the graph.

    Args:
        model: The graph of the artifact.
        row: The ledger's row of it, which names values by their place in the structure.
        count: Most values.
    """
    known = {error.value: error.layer for error in row.layers}
    outputs = {value.name for value in model.graph.outputs}
    found = {}
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.name not in outputs and value.dtype in _FLOATS:
                if value.name in known:
                    found[value.name] = known[value.name]
                elif _has_weight(node):
                    found[value.name] = f"{node.op_type} {node.name or value.name}"
    names = list(found)
    step = max(1, -(-len(names) // max(count, 1)))
    # From the end, so that the value nearest to the output is always among them.
    chosen = set(names[::-1][::step][:count])
    return {name: label for name, label in found.items() if name in chosen}


def write_tapped(entry: Path, taps: Sequence[str], folder: Path) -> list[Path]:
    """Write the graph of `entry` with `taps` as further outputs; return the files, the graph first."""
    path = folder / TAPPED_FILE
    write_onnx(with_taps(ir.load(entry), taps), path)
    return [path, *sorted(file for file in folder.glob(TAPPED_FILE + "*") if file != path)]


def compare_taps(
    entry: Path, batches: "Sequence[Batch]", archive: Path, names: Sequence[str], labels: Mapping[str, str]
) -> tuple[LayerError, ...]:
    """Return how far each value on the device is from the simulation, in graph order.

    Args:
        entry: The graph.
        batches: What the device ran, as far as values were kept.
        archive: The device's values.
        names: Names of all outputs of the tapped graph, in the order of the archive.
        labels: Value name to where it stands.
    """
    session = ReferenceSession(entry, taps=list(labels), round_half=True)
    divergences = {name: Divergence() for name in labels}
    with np.load(archive, allow_pickle=False) as seen_batches:
        for index, batch in enumerate(batches):
            expected, seen = session.run(batch.inputs), read_batch(seen_batches, index, names)
            for name, divergence in divergences.items():
                if expected[name].shape == seen[name].shape:
                    divergence.update(expected[name], seen[name])
    return tuple(LayerError(value=name, layer=labels[name], sqnr_db=one.sqnr_db) for name, one in divergences.items())


def _has_weight(node: ir.Node) -> bool:
    tensors = (constant_tensor(value) for value in node.inputs if value is not None)
    return any(tensor is not None and len(tensor.shape) >= _WEIGHT_RANK for tensor in tensors)
