"""Shrinks ranges that a few values stretch, as far as the outputs of the network come closer to those in float.

Where an activation reaches thirty times its root mean square, one step of 8 bits is coarse for nearly all values. By
the squared error of the activation itself it hardly pays to cut its ends off. What reads it decides, though: behind the
linear bottlenecks of MobileNetV2 a Clip cuts most of what was large anyway. So the error is measured where it counts,
at the outputs of the graph.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.observe import fixed_batch
from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.outputs import float_outputs
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_quantization.forms.static_form import ActivationCode, Placement, quantize_activation
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.statistics.activation_ranges import calibration

if TYPE_CHECKING:
    from edgesmith_calibration.sources import Batch

FACTORS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""What ranges are multiplied by, all stretched ones by the same, so that few samples can tell."""
ENOUGH_DB = 32.0
"""Activations whose own rounding keeps as much are not stretched: 8 bits keep 38 dB of evenly spread values or more."""
CHANCE_DB = 0.5
"""Errors that differ by less count as equal: of 300 places of an output or more, the standard error of such a
difference is below 10 / ln 10 * 2 / sqrt(300) dB. A factor changes the noise of an activation by 3 dB at least."""
_SAMPLES = 8
_LEAST_VALUES = 10_000
"""Activations of which calibration shows fewer numbers keep their range: rare ones may not be among them."""

Codes = Mapping[ir.Value, ActivationCode]


def shrink_ranges(
    model: Model,
    placement: Placement,
    codes: Codes,
    readers: Collection[ir.Node],
    context: Context[QuantizeInt8Options],
) -> dict[ir.Value, ActivationCode]:
    """Return the codes with finer steps for activations that a few large values stretch, where outputs gain by it.

    One pass over a few calibration samples for each factor; nothing is run where no activation is stretched, or where
    calibration has no whole batch of the graph.

    Args:
        model: The float model that holds the placed values. It is not changed.
        placement: Which values get a Q/DQ pair.
        codes: Their scales and zero points.
        readers: Nodes that will read quantized values.
        context: Options and data.
    """
    chosen = {value: code for value, code in codes.items() if stretched(code)}
    if not chosen:
        return dict(codes)
    errors = _output_errors(model, chosen, placement, readers, context)
    best, changes = best_factor(errors)
    if best == 0:
        return dict(codes)
    gaining = changes[changes <= _fall(CHANCE_DB)]
    context.notes.remark(
        f"Shrunk the ranges of {len(chosen)} activations that few values stretch to {FACTORS[best]:g} of them: what "
        f"their rounding does to {len(gaining)} of {len(changes)} outputs fell by {_decibels(gaining.max()):.1f} dB"
        f"{' or more' if len(gaining) > 1 else ''}."
    )
    scale = np.float32(FACTORS[best])
    return {
        value: replace(code, scale=np.float32(code.scale * scale)) if value in chosen else code
        for value, code in codes.items()
    }


def stretched(code: ActivationCode) -> bool:
    """Return whether rounding to a code keeps too little of what calibration data put into the activation."""
    noise = float(code.scale) ** 2 / 12
    return code.count >= _LEAST_VALUES and 0 < code.mean_square < 10 ** (ENOUGH_DB / 10) * noise


def best_factor(errors: NDArray[np.float64]) -> tuple[int, NDArray[np.float64]]:
    """Return the factor that brings outputs closer and none farther away, and by what it multiplies their errors.

    The output that gains least decides among those that can gain, so that many outputs, or one with large errors, do
    not outvote another. 0 where no factor is better than the first.

    Args:
        errors: Squared errors, [outputs, factors], the first column without a change. May be infinite.
    """
    unchanged = errors[:, :1]
    if not np.isfinite(unchanged).all():
        return 0, np.ones(len(errors))
    # What was exact must stay so.
    changes = np.divide(errors, unchanged, out=np.where(errors > 0, np.inf, 1.0), where=unchanged > 0)
    allowed = np.flatnonzero((changes <= 1 / _fall(CHANCE_DB)).all(axis=0))
    tried = changes[:, allowed]
    gaining = tried[(tried <= _fall(CHANCE_DB)).any(axis=1)]
    if len(gaining) == 0:
        return 0, np.ones(len(errors))
    worst = gaining.max(axis=0)
    best = int(np.argmin(worst))
    index = int(allowed[best]) if worst[best] <= _fall(CHANCE_DB) else 0
    return index, changes[:, index]


def _fall(decibels: float) -> float:
    return float(10 ** (-decibels / 10))


def _decibels(change: float) -> float:
    return -10 * float(np.log10(change)) if change > 0 else float("inf")


def _output_errors(
    model: Model,
    codes: Codes,
    placement: Placement,
    readers: Collection[ir.Node],
    context: Context[QuantizeInt8Options],
) -> NDArray[np.float64]:
    """Return the squared error that rounding some values makes, [float outputs, factors]."""
    outputs = float_outputs(model.graph)
    errors = np.zeros((len(outputs), len(FACTORS)))
    exact = ReferenceSession(model.ir, threads=context.threads)
    rounded, scales = _with_scale_inputs(model.ir, codes, placement, readers)
    session = ReferenceSession(rounded, threads=context.threads)
    names = {str(value.name) for value in model.graph.inputs}
    for batch in _few_batches(model, context):
        feeds = {name: array for name, array in batch.inputs.items() if name in names}
        expected = exact.run(feeds)
        for index, factor in enumerate(FACTORS):
            actual = session.run(
                {**feeds, **{name: np.asarray(scale * factor, np.float32) for name, scale in scales.items()}}
            )
            errors[:, index] += [squared_error(actual[name], expected[name]) for name in outputs]
    return errors


def _few_batches(model: Model, context: Context[QuantizeInt8Options]) -> "Iterator[Batch]":
    """Yield batches of the size that the graph wants, of some samples in all, or of one batch where it is larger."""
    size = fixed_batch(model.ir) or 1
    data = calibration(context).take(max(1, _SAMPLES // size) * size)
    return (batch for batch in data.batches(size) if batch.size == size)


def squared_error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the sum of squared differences where `expected` is finite; infinite where `actual` is not, or NaN."""
    # The difference of 16-bit values would be rounded itself.
    wanted = expected.astype(np.float64)
    places = np.isfinite(wanted)
    with np.errstate(over="ignore"):
        error = float(np.square(actual.astype(np.float64)[places] - wanted[places]).sum())
    return error if np.isfinite(error) else float("inf")


def _with_scale_inputs(
    model: ir.Model, codes: Codes, placement: Placement, readers: Collection[ir.Node]
) -> tuple[ir.Model, dict[str, np.float32]]:
    """Return a copy that rounds the values with scales from its inputs, and these scales by name."""
    copy = model.clone()
    nodes = dict(zip(model.graph, copy.graph, strict=True))
    twins = dict(zip(model.graph.inputs, copy.graph.inputs, strict=True))
    twins |= {value: twin for node, own in nodes.items() for value, twin in zip(node.outputs, own.outputs, strict=True)}
    editor, scales = GraphEditor(copy.graph), {}
    own_readers = {nodes[node] for node in readers}
    for value, code in codes.items():
        twin = twins[value]
        pair = quantize_activation(editor, twin, code, None if value in placement.forced else own_readers)
        scale: Any = pair.inputs[1]
        copy.graph.initializers.pop(scale.name)
        scale.const_value = None
        copy.graph.inputs.append(scale)
        scales[str(scale.name)] = code.scale
    return copy, scales
