"""Shrinks ranges that a few values stretch, as far as the outputs of the network come closer to those in float.

Where an activation reaches thirty times its root mean square, one step of 8 bits is coarse for nearly all values. By
the squared error of the activation itself it hardly pays to cut its ends off. What reads it decides, though: behind the
linear bottlenecks of MobileNetV2 a Clip cuts most of what was large anyway. So the error is measured where it counts,
at the outputs of the graph.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.data import fixed_batch_size
from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.edit import GraphEditor
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_quantization.forms.static_form import ActivationCode, Placement, quantize_activation
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.statistics.activation_ranges import calibration

FACTORS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""What ranges are multiplied by, all stretched ones by the same, so that few samples can tell."""
ENOUGH_DB = 32.0
"""Activations whose own rounding keeps as much are not stretched: 8 bits keep 38 dB of evenly spread values or more."""
LEAST_GAIN_DB = 0.5
"""A range is cut only where the error falls by more than chance may make it."""
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

    One pass over a few calibration samples for each factor; nothing is run where no activation is stretched.

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
    best = int(np.argmin(errors))
    if errors[0] <= 0 or errors[best] > errors[0] * 10 ** (-LEAST_GAIN_DB / 10):
        return dict(codes)
    gain_db = 10 * np.log10(errors[0] / max(errors[best], np.finfo(np.float64).tiny))
    context.notes.remark(
        f"Shrunk the ranges of {len(chosen)} activations that few values stretch to {FACTORS[best]:g} of them: what "
        f"their rounding does to the outputs fell by {gain_db:.1f} dB."
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


def _output_errors(
    model: Model,
    codes: Codes,
    placement: Placement,
    readers: Collection[ir.Node],
    context: Context[QuantizeInt8Options],
) -> NDArray[np.float64]:
    """Return what rounding some values does to the outputs, relative to these, for each factor."""
    exact = ReferenceSession(model.ir, threads=context.threads)
    rounded, scales = _with_scale_inputs(model.ir, codes, placement, readers)
    session = ReferenceSession(rounded, threads=context.threads)
    noise: dict[str, NDArray[np.float64]] = {}
    power: dict[str, float] = {}
    names = {str(value.name) for value in model.graph.inputs}
    for batch in calibration(context).take(_SAMPLES).batches(fixed_batch_size(model) or 1):
        feeds = {name: array for name, array in batch.inputs.items() if name in names}
        expected = {name: array for name, array in exact.run(feeds).items() if array.dtype.kind == "f"}
        for name, array in expected.items():
            power[name] = power.get(name, 0.0) + _energy(array)
        for index, factor in enumerate(FACTORS):
            actual = session.run(
                {**feeds, **{name: np.asarray(scale * factor, np.float32) for name, scale in scales.items()}}
            )
            for name, array in expected.items():
                noise.setdefault(name, np.zeros(len(FACTORS)))[index] += _energy(actual[name] - array)
    return sum((noise[name] / power[name] for name in noise if power[name] > 0), np.zeros(len(FACTORS)))


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


def _energy(array: NDArray[Any]) -> float:
    return float(np.square(array, dtype=np.float64).sum())
