"""The method `prune-weights`: single weights become zero, and the others make up for them."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from edgesmith.data import required_data
from edgesmith.errors import EdgesmithError, StepError
from edgesmith.execution.unpadded import without_padding
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.host.context import Context, Notes
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.mapped import WeightFile
from edgesmith.model import Model
from edgesmith.protection import Protection
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.finding.sparse_layers import (
    SparseLayer,
    find_sparse_layers,
    own_initializers,
    protected_mask,
)
from edgesmith_pruning.options.weights import PruneWeightsOptions
from edgesmith_pruning.sparsity.layer import Rule
from edgesmith_pruning.sparsity.masks import Mask, Pattern
from edgesmith_pruning.sparsity.report import remarks, zeros_remarks
from edgesmith_pruning.sparsity.run import SparseRun

WeightsContext = Context[PruneWeightsOptions]


class PruneWeights(Method[PruneWeightsOptions]):
    """Sets weights of products and convolutions to zero; the graph keeps its form."""

    def check(self, model: Model, context: WeightsContext) -> Verdict:
        """Return whether there are weights to remove, and the data that says which."""
        options = context.options
        problem = unmatched_names(model.graph, options) or _pattern_problem(options)
        if problem:
            return Verdict.refuse(problem)
        notes = Notes()
        layers = find_sparse_layers(model.ir, find_structure(model.ir), options, notes)
        if not layers:
            return Verdict.skip(f"no weight can be made sparse ({_reasons(notes)})")
        if options.needs.data and not context.calibration:
            return Verdict.refuse(
                "what weights are worth is measured on calibration data; pass it with --data, or set criterion to "
                "magnitude and refit to false"
            )
        if options.trains and any(layer.site.weight.dtype == ir.DataType.FLOAT16 for layer in layers):
            return Verdict.refuse(
                "weights in float16 are too coarse to be trained; set training_steps to 0, and put recover behind"
            )
        try:
            _protected(layers, model, options, notes)
        except EdgesmithError as error:
            return Verdict.refuse(error.what)
        return Verdict.ok(nodes=tuple(node.name or "" for layer in layers for node in layer.site.readers))

    def apply(self, model: Model, context: WeightsContext) -> Model:
        """Return the model with zeros in its weights.

        Raises:
            DataError: There is no calibration data, or it makes an activation infinite or NaN.
            RecipeError: The protection was made for another model.
            StepError: There is nothing to prune.
        """
        options, result = context.options, model.clone()
        structure = find_structure(result.ir)
        own_initializers(result.graph, find_sparse_layers(result.ir, structure, options, Notes()))
        layers = find_sparse_layers(result.ir, structure, options, context.notes)
        stays = _protected(layers, model, options, context.notes)
        layers = tuple(layer for layer in layers if layer.name in stays)
        if not layers:
            raise _nothing(context.notes)
        if options.trains:
            return _trained(model, layers, stays, structure, context)
        # The system keeps the files of weights for as long as the result uses them.
        with TemporaryDirectory(dir=context.scratch) as folder:
            run = SparseRun(
                dense=model.ir,
                working=result.ir,
                rule=_rule(context),
                biases=options.biases and options.refit and options.needs.data,
                data=_calibration(model, structure, context) if options.needs.data else None,
                scratch=Path(folder),
                progress=context.progress,
                batch_size=options.batch_size,
                activations_mib=options.activations_mib,
            )
            outcomes = list(run.run(layers, stays, WeightFile(Path(folder))))
        for remark in remarks(outcomes, options, context.dialect):
            context.notes.remark(remark)
        return result


def _trained(
    model: Model, layers: Sequence[SparseLayer], stays: dict[str, Mask], structure: Structure, context: WeightsContext
) -> Model:
    """Return the model after choosing masks and training, stage by stage."""
    from edgesmith_pruning.sparsity.trained import SampleTrainSelect, Schedule

    options = context.options
    schedule = Schedule(
        sparsity=options.sparsity,
        pattern=Pattern.parse(options.pattern),
        steps=options.training_steps,
        check_steps=options.check_steps,
        candidates=options.candidates if options.criterion == "randomized" else 0,
        seed=context.seed,
    )
    source = model.ir.clone()
    own_initializers(source.graph, tuple(find_sparse_layers(source, structure, options, Notes())))
    data = _calibration(model, structure, context)
    training = SampleTrainSelect(source, layers, stays, data, schedule, context.progress, options.batch_size)
    result, _ = training.run()
    for selection in training.selections:
        context.notes.remark(selection.sentence())
    pruned = [each.matrix() for each in find_sparse_layers(result, structure, options, Notes()) if each.name in stays]
    for remark in zeros_remarks(pruned, options, context.dialect):
        context.notes.remark(remark)
    return model.with_ir(result)


def _rule(context: WeightsContext) -> Rule:
    options = context.options
    return Rule(
        criterion=options.criterion,
        sparsity=options.sparsity,
        pattern=Pattern.parse(options.pattern),
        adaptive_hessian=options.adaptive_hessian,
        adaptive_weight=options.adaptive_weight,
        refit=options.refit,
        damping=options.damping,
        exact_width=options.exact_width,
        candidates=options.candidates,
        threads=context.threads,
        seed=context.seed,
    )


def _pattern_problem(options: PruneWeightsOptions) -> str:
    pattern = Pattern.parse(options.pattern)
    if pattern is None or pattern.kept < pattern.group:
        return ""
    return f"the pattern {pattern} removes nothing: N must be smaller than M"


def _protected(
    layers: Sequence[SparseLayer], model: Model, options: PruneWeightsOptions, notes: Notes
) -> dict[str, Mask]:
    """Return the weights that must stay for each layer, without the layers that could not follow the pattern then."""
    protection = Protection.chosen(options.protect, model.assets)
    pattern = Pattern.parse(options.pattern)
    stays = {}
    for layer in layers:
        mask = protected_mask(layer, protection)
        if pattern is not None and (mask.reshape(-1, pattern.group).sum(axis=1) > pattern.kept).any():
            _leave(layer, f"protected weights stay, so that {pattern} cannot hold", notes)
        elif mask.all():
            _leave(layer, "all its weights are protected", notes)
        else:
            stays[layer.name] = mask
    return stays


def _leave(layer: SparseLayer, reason: str, notes: Notes) -> None:
    for node in layer.site.readers:
        notes.skip(node.name or layer.name, reason)


def _calibration(model: Model, structure: Structure, context: WeightsContext) -> DataSource:
    given = required_data(
        context.calibration,
        "prune-weights",
        why="what weights are worth is measured on what layers read",
        fix="set criterion to magnitude and refit to false",
    )
    data, remark = without_padding(model.ir, structure.attentions, given.take(context.options.samples))
    if remark:
        context.notes.remark(remark)
    return data


def _reasons(notes: Notes) -> str:
    shown = [f"{name}: {reason}" for name, reason in list(notes.skipped.items())[:3]]
    return "; ".join(shown) or "the graph has no product or convolution with a constant weight"


def _nothing(notes: Notes) -> StepError:
    return StepError(
        f"prune-weights found nothing to prune ({_reasons(notes)})",
        expected="at least one MatMul, Gemm or Conv with a constant float weight",
        why="the step would change nothing",
        fix="remove the step from the recipe, or widen the options operators, only and skip",
    )
