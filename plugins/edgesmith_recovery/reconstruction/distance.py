"""How far a model's outputs are from its source's, and whether a repair is to be kept."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.unpadded import Padding
from edgesmith.host.context import Context
from edgesmith_calibration.sources import DataSource
from edgesmith_recovery.finding.outputs import compared_outputs
from edgesmith_recovery.options.recover import RecoverOptions

Array = NDArray[Any]


def taken_by(session: ReferenceSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return those arrays that a session takes: a model that lost blocks takes fewer caches than its source."""
    return {name: array for name, array in inputs.items() if name in session.input_names}


def shown_rows(array: Array, mask: Array | None) -> Array:
    """Return the rows along the last axis, [rows, width], without those that `mask` hides.

    Args:
        array: Values of any shape.
        mask: 0 where a position is padding, [samples, positions]; None for no padding.
    """
    rows: Array = array.reshape(-1, array.shape[-1])
    fits = mask is not None and array.ndim > mask.ndim and array.shape[: mask.ndim] == mask.shape
    if not fits or mask is None:
        return rows
    places = np.broadcast_to((mask != 0).reshape(*mask.shape, *[1] * (array.ndim - mask.ndim - 1)), array.shape[:-1])
    shown: Array = rows[places.reshape(-1)]
    return shown


def output_error(
    model: ir.Model, source: ir.Model, data: DataSource, padding: Padding | None, *, batch_size: int, threads: int
) -> float:
    """Return the energy of what the outputs differ by over the energy of the source's, of several outputs the mean.

    Keys and values for a cache count only where no other output is a float.

    Args:
        model: The graph in question.
        source: The graph that it should equal.
        data: Samples that nothing was fitted on.
        padding: How the graphs are told about padding; padded positions do not count.
        batch_size: Samples per run.
        threads: Threads of the runtime.
    """
    ours, theirs = (ReferenceSession(each, optimization="all", threads=threads) for each in (model, source))
    names = compared_outputs(model.graph)
    noise: dict[str, float] = {}
    signal: dict[str, float] = {}
    for batch in data.batches(batch_size):
        mask = None if padding is None else batch.inputs[padding.mask]
        found, wanted = (session.run(taken_by(session, batch.inputs)) for session in (ours, theirs))
        for name in names:
            if not wanted[name].ndim:
                continue
            expected = shown_rows(wanted[name], mask).astype(np.float64)
            difference = shown_rows(found[name], mask).astype(np.float64) - expected
            noise[name] = noise.get(name, 0.0) + float(np.vdot(difference, difference))
            signal[name] = signal.get(name, 0.0) + float(np.vdot(expected, expected))
    ratios = [noise[name] / max(signal[name], np.finfo(float).tiny) for name in noise]
    return sum(ratios) / max(len(ratios), 1)


def better_of(
    before: ir.Model, after: ir.Model, error: Callable[[ir.Model], float], what: str, context: Context[RecoverOptions]
) -> ir.Model:
    """Return the graph of less error, and say which it is. At equal error, nothing was gained."""
    was, is_now = error(before), error(after)
    if is_now < was:
        context.notes.remark(
            f"{what}; the error of the outputs on held-out samples fell from {was:.4g} to {is_now:.4g}."
        )
        return after
    context.notes.remark(
        f"{what}; on held-out samples the error of the outputs went from {was:.4g} to {is_now:.4g}, so this is undone "
        "and all layers stay as they were."
    )
    return before.clone()
