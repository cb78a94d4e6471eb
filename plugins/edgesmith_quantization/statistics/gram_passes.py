"""Gram matrices of the inputs that weights are multiplied with, a few layers per pass over the calibration data."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.data import required_data
from edgesmith.execution.observe import observe
from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.weight_sites import WeightSite
from edgesmith.host.context import Context
from edgesmith_calibration.observers import GramObserver
from edgesmith_quantization.options.weights import QuantizeWeightsOptions

Gram = NDArray[np.float64]

_BYTES = 8


def with_grams(
    model: ir.Model, sites: Sequence[WeightSite], context: Context[QuantizeWeightsOptions]
) -> Iterator[tuple[WeightSite, Gram | None]]:
    """Yield every site with the Gram matrix [inputs, inputs] of what its products multiply it with.

    None where nothing can be said of that: tables that are only selected from, convolutions, transposed activations.
    Each pass over the data holds the matrices of as many layers as `statistics_mib` allows, and of one at least.

    Args:
        model: A graph that computes the inputs, by the names that the sites' readers know; never changed.
        sites: In graph order, so that layers that share an input fall into one pass.
        context: Calibration data and options.

    Raises:
        DataError: There is no calibration data, or it makes an activation infinite or NaN.
    """
    data = required_data(
        context.calibration,
        "second-order rounding",
        why="it weighs rounding errors by what the layer's inputs are like",
        fix="set the option rounding to mse",
    ).take(context.options.samples)
    names = {site: observed_inputs(site) for site in sites}
    short: dict[str, str] = {}
    yield from ((site, None) for site in sites if not names[site])
    for part in _passes([site for site in sites if names[site]], names, context.options.statistics_mib * 2**20):
        observers = observe(
            model,
            list(dict.fromkeys(name for site in part for name in names[site])),
            data,
            GramObserver,
            batch_size=context.options.batch_size,
            threads=context.threads,
            progress=context.progress,
        )
        for site in part:
            grams = [observers[name].matrix for name in names[site]]
            rows = sum(observers[name].count for name in names[site])
            if rows < site.shape[site.input_axis]:
                short[site.name] = f"{rows} rows for {site.shape[site.input_axis]} inputs"
            yield site, sum(grams[1:], grams[0])
    if short:
        name, counts = next(iter(short.items()))
        context.notes.remark(
            f"Second-order rounding had too little data for {len(short)} weights (such as {name}: {counts}) and may do "
            "worse than mse there; give it more samples."
        )


def observed_inputs(site: WeightSite) -> tuple[str, ...]:
    """Return the names of the activations that a site's products multiply, or nothing where rows are not along them."""
    if not site.readers or any(not _sums_last_axis(node) for node in site.readers):
        return ()
    values = dict.fromkeys(node.inputs[0] for node in site.readers)
    if any(value is None or not value.name or constant_tensor(value) is not None for value in values):
        return ()
    return tuple(value.name for value in values if value is not None and value.name)


def _sums_last_axis(node: ir.Node) -> bool:
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transA", 0))


def _passes(
    sites: Sequence[WeightSite], names: dict[WeightSite, tuple[str, ...]], budget_bytes: int
) -> Iterator[list[WeightSite]]:
    """Cut the sites into runs whose matrices fit the budget together."""
    part: list[WeightSite] = []
    held: set[str] = set()
    used = 0
    for site in sites:
        needed = len(set(names[site]) - held) * _BYTES * site.shape[site.input_axis] ** 2
        if part and used + needed > budget_bytes:
            yield part
            part, held, used = [], set(), 0
            needed = len(names[site]) * _BYTES * site.shape[site.input_axis] ** 2
        part.append(site)
        held.update(names[site])
        used += needed
    if part:
        yield part
