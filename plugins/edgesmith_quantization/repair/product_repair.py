"""Makes a float graph easier to quantize: shifts ranges into weights, and names outlier channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith.host.context import Context
from edgesmith.mapped import release_array
from edgesmith_quantization.finding.candidates import Candidate
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.repair.channel_statistics import observe_channels
from edgesmith_quantization.repair.migration import Migration, MigrationFinder, input_axis, migrate
from edgesmith_quantization.repair.outliers import ENOUGH_DB, Outliers, find_outliers
from edgesmith_quantization.repair.smoothing import (
    ChannelSummary,
    Float64,
    best_strength,
    equalizing_scale,
    expected_sqnr_db,
)

_SAMPLES = 16
"""Samples that show the channels of transformers: each brings many tokens."""
_MINIMUM_GAIN_DB = 0.5
"""Shifts that gain less are not worth a changed weight."""
_MINIMUM_GAIN_FOR_AN_OPERATOR_DB = 3.0
"""Where another reader needs the activation multiplied back, a shift must gain this much."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done to the graph, and what is left to do beside the integer products."""

    changed: bool = False
    outliers: Mapping[str, Outliers] = field(default_factory=dict)
    """Outliers by name of the activation."""
    means: Mapping[str, Float64] = field(default_factory=dict)
    """Mean of each channel by name of the activation, after the shift; none where outliers are kept out."""

    def outliers_of(self, candidates: Sequence[Candidate]) -> dict[ir.Value, Outliers]:
        """Return the outliers of what the candidates read, by value."""
        activations = dict.fromkeys(candidate.activation for candidate in candidates)
        return {value: self.outliers[str(value.name)] for value in activations if str(value.name) in self.outliers}


def repair(model: ir.Model, candidates: Sequence[Candidate], context: Context[QuantizeInt8Options]) -> Repair:
    """Shift ranges between layers of a cloned float graph, and return which channels are outliers after that.

    Statistics come from one streaming pass over a part of the calibration data; without data, nothing that needs them
    is done.

    Args:
        model: The graph to edit.
        candidates: The products that will be quantized.
        context: Options and data.
    """
    options = context.options
    groups = _readers(candidates)
    migrations = _find_migrations(model, groups, context) if options.smoothing or options.equalization else {}
    changed = options.equalization and _equalize(model, migrations, context)
    summaries = _observe_channels(model, groups, migrations, context)
    scales: dict[ir.Value, Float64] = {}
    if options.smoothing:
        scales = _smooth(model, migrations, summaries, context)
    outliers = {}
    for activation, summary in summaries.items():
        shifted = _divided(summary, scales[activation]) if activation in scales else summary
        if options.outlier_channels == 0:
            break
        weights = [_matrix(candidate) for candidate in groups[activation]]
        expected_db = expected_sqnr_db(shifted, weights, context.dialect.activation.bits)
        for weight in weights:
            release_array(weight)
        if expected_db >= ENOUGH_DB:
            continue
        found = find_outliers(shifted, options.outlier_channels)
        if found is not None:
            outliers[str(activation.name)] = found
    if outliers:
        count = sum(len(each.channels) for each in outliers.values())
        context.notes.remark(f"Kept the peaks of {count} outlier channels of {len(outliers)} activations in float.")
    if scales or changed:
        common_passes.RemoveUnusedNodesPass()(model)
    means = {
        str(activation.name): summary.mean / scales.get(activation, np.ones(1))
        for activation, summary in summaries.items()
        if options.bias_correction and str(activation.name) not in outliers
    }
    return Repair(bool(scales) or changed, outliers, means)


def _readers(candidates: Sequence[Candidate]) -> dict[ir.Value, list[Candidate]]:
    groups: dict[ir.Value, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.activation, []).append(candidate)
    return groups


def _find_migrations(
    model: ir.Model, groups: Mapping[ir.Value, Sequence[Candidate]], context: Context[QuantizeInt8Options]
) -> dict[ir.Value, Migration]:
    finder, found, obstacles = MigrationFinder(model), {}, dict[str, list[str]]()
    for activation, consumers in groups.items():
        migration = finder.find(activation, consumers)
        if isinstance(migration, Migration):
            found[activation] = migration
        else:
            obstacles.setdefault(migration, []).append(str(activation.name))
    for reason, names in obstacles.items():
        context.notes.remark(f"Ranges that cannot be shifted ({reason}): {len(names)}, such as {names[0]}.")
    return found


def _is_matrix(candidate: Candidate) -> bool:
    return candidate.node.op_type == "MatMul"


def _observe_channels(
    model: ir.Model,
    groups: Mapping[ir.Value, Sequence[Candidate]],
    migrations: Mapping[ir.Value, Migration],
    context: Context[QuantizeInt8Options],
) -> dict[ir.Value, ChannelSummary]:
    """Return the channels of what matrix products read, where something can be done about them."""
    options = context.options
    if not context.calibration:
        return {}
    wanted = [
        activation
        for activation, readers in groups.items()
        if all(map(_is_matrix, readers))
        and (options.outlier_channels > 0 or (options.smoothing and activation in migrations))
    ]
    if not wanted:
        return {}
    summaries = observe_channels(
        model, [str(activation.name) for activation in wanted], context, axis=-1, samples=_SAMPLES
    )
    return {activation: summaries[str(activation.name)] for activation in wanted}


def _smooth(
    model: ir.Model,
    migrations: Mapping[ir.Value, Migration],
    summaries: Mapping[ir.Value, ChannelSummary],
    context: Context[QuantizeInt8Options],
) -> dict[ir.Value, Float64]:
    """Shift the range of each activation as far as lowers the expected noise; return the scales."""
    editor, scales = GraphEditor(model.graph), {}
    gains = []
    # From the outputs backwards: what is divided at one activation is then part of the weights at the one before.
    for activation, migration in reversed(list(migrations.items())):
        if activation not in summaries:
            continue
        weights = [_matrix(candidate) for candidate in migration.consumers]
        scale, gain_db = best_strength(summaries[activation], weights, migration.ties, context.dialect.activation.bits)
        for weight in weights:
            release_array(weight)
        if gain_db >= (_MINIMUM_GAIN_FOR_AN_OPERATOR_DB if migration.others else _MINIMUM_GAIN_DB):
            migrate(editor, migration, scale)
            scales[activation] = scale
            gains.append(gain_db)
    if gains:
        context.notes.remark(
            f"Shifted ranges of activations into weights: {len(gains)}; expected noise of their products fell by "
            f"{np.median(gains):.1f} dB (median), {max(gains):.1f} dB at most."
        )
    return scales


def _equalize(model: ir.Model, migrations: Mapping[ir.Value, Migration], context: Context[QuantizeInt8Options]) -> bool:
    """Let both weights around an activation reach equally far in each channel; return whether any was changed."""
    editor, count = GraphEditor(model.graph), 0
    for migration in reversed(list(migrations.values())):
        first = [c for c in migration.constants if c.node.op_type in ("Conv", "MatMul", "Gemm") and c.index == 1]
        if (
            migration.others
            or len(first) != 1
            or len(migration.consumers) != 1
            or len(np.unique(migration.ties)) != len(migration.ties)
        ):
            continue
        (made,), (consumer,) = first, migration.consumers
        weight, following = constant_value(made.node.inputs[1]), constant_value(consumer.node.inputs[1])
        if weight is None or following is None or len(made.groups) != len(migration.ties):
            continue
        scale = equalizing_scale(_peak(weight, made.axis), _peak(following, input_axis(consumer)))
        migrate(editor, migration, scale)
        count += 1
    if count:
        context.notes.remark(f"Equalized {count} pairs of weights.")
    return count > 0


def _matrix(candidate: Candidate) -> NDArray[np.float32]:
    """Return the weight as [channels, outputs]."""
    weight = candidate.node.inputs[1]
    array = constant_value(candidate.weight if candidate.transposed else weight)
    if array is None:
        raise ValueError(candidate.name)  # candidates hold constants only
    return array.T if candidate.channel_axis == 0 else array


def _peak(weight: NDArray[np.float32], axis: int) -> Float64:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.asarray(np.abs(weight).max(axis=others), np.float64)


def _divided(summary: ChannelSummary, scale: Float64) -> ChannelSummary:
    return ChannelSummary(summary.low / scale, summary.high / scale, summary.mean / scale, summary.power / scale**2)
