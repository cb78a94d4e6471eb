"""The method: finds products, asks the mathematics for factors, and writes them into a copy of the graph."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgesmith import Context, Method, Model, Verdict
from edgesmith.graph.edit import GraphEditor
from edgesmith_lowrank.factorisation import Factors, Matrix, factorise, rank_for_energy, rank_for_ratio, saves
from edgesmith_lowrank.options import Options
from edgesmith_lowrank.products import Weight, find_weights
from edgesmith_lowrank.statistics import grams


class FactoriseLowRank(Method[Options]):
    """Puts two thin products in place of one where that costs fewer multiply-accumulates."""

    def check(self, model: Model, context: Context[Options]) -> Verdict:
        """Return whether there is a product to factorise, and data where it is asked for."""
        weights, reasons = find_weights(model.graph, context.options.skip)
        if not weights:
            why = next(iter(reasons.values()), "there is no MatMul or Gemm")
            return Verdict.skip(f"no product with a stored matrix of its own: {why}", tuple(reasons))
        if context.options.whiten and context.calibration is None:
            return Verdict.refuse("`whiten` needs calibration data: give some, or set whiten: false")
        return Verdict.ok(nodes=tuple(str(node.name) for weight in weights for node in weight.nodes))

    def apply(self, model: Model, context: Context[Options]) -> Model:
        """Return a model with the factors in place. Matrices that are shared stay shared."""
        result = model.clone()
        editor = GraphEditor(result.graph)
        weights, reasons = find_weights(result.graph, context.options.skip)
        for name, reason in reasons.items():
            context.notes.skip(name, reason)
        done = 0
        for weight, gram in _with_grams(model, weights, context):
            factors = factorise(_matrix(weight), gram)
            rank = _rank(factors, weight, context.options)
            if not saves(rank, *weight.size):
                for node in weight.nodes:
                    context.notes.skip(str(node.name), f"{rank} directions of {weight.size} would save nothing")
                continue
            _write(editor, weight, factors, rank)
            kept = factors.energy[:rank].sum()
            context.notes.remark(f"{weight.value.name}: rank {rank} of {min(weight.size)}, {kept:.2%} of the energy.")
            done += 1
        context.notes.remark(f"{done} of {len(weights)} matrices were factorised.")
        return result


def _with_grams(
    model: Model, weights: tuple[Weight, ...], context: Context[Options]
) -> Iterator[tuple[Weight, Matrix | None]]:
    if context.options.whiten and context.calibration is not None:
        yield from grams(model, weights, context.calibration, context)
    else:
        yield from ((weight, None) for weight in context.progress.track(weights, "factorising"))


def _matrix(weight: Weight) -> Matrix:
    """Return the stored matrix as [in, out]."""
    stored = weight.value.const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
    return stored.T if weight.transposed else stored


def _rank(factors: Factors, weight: Weight, options: Options) -> int:
    if options.rank_by == "energy":
        rank = rank_for_energy(factors.energy, options.energy)
    else:
        rank = rank_for_ratio(*weight.size, options.ratio)
    return min(-(-rank // options.multiple) * options.multiple, min(weight.size))


def _write(editor: GraphEditor, weight: Weight, factors: Factors, rank: int) -> None:
    """Put a thin product before each reader of a matrix, and let the reader multiply by the other factor."""
    left, right = factors.cut(rank)
    stored = weight.value.const_value
    dtype = stored.dtype.numpy()  # type: ignore[union-attr]
    first = editor.add_initializer(f"{weight.value.name}_left", left.astype(dtype))
    second = editor.add_initializer(
        f"{weight.value.name}_right", np.ascontiguousarray(right.T if weight.transposed else right, dtype)
    )
    for node in weight.nodes:
        data = node.inputs[0]
        thin = editor.insert_before(node, "MatMul", (data, first), name=f"{node.name}_thin").outputs[0]
        if data is not None and data.shape is not None:
            thin.shape = ir.Shape([*data.shape[:-1], rank])
        thin.type = weight.value.type
        node.replace_input_with(0, thin)
        node.replace_input_with(1, second)
    editor.graph.initializers.pop(str(weight.value.name))
