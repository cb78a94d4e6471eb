"""The method `recover`: repairs what lossy steps cost, by learning from the source model on unlabelled data."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgesmith.errors import EdgesmithError, StepError
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.host.context import Context, Notes
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.protection import Protection
from edgesmith_recovery.finding.codes import Thawed, refreeze, thaw
from edgesmith_recovery.finding.layers import find_layers
from edgesmith_recovery.finding.pairs import block_pairs
from edgesmith_recovery.finding.weights import TrainedWeight, find_weights
from edgesmith_recovery.options.recover import RecoverOptions


class Recover(Method[RecoverOptions]):
    """Trains the graph as it will be deployed against the model that the run started from.

    Zeros, protected channels, shared weights and quantizers stay what they are. The result never answers worse on
    held-out calibration data than what was given.
    """

    def check(self, model: Model, context: Context[RecoverOptions]) -> Verdict:
        """Return whether there is something to learn from, and something to train."""
        try:
            return _check(model, context)
        except EdgesmithError as error:
            return Verdict.refuse(f"{error.what}; {error.fix}")

    def apply(self, model: Model, context: Context[RecoverOptions]) -> Model:
        """Return the recovered model.

        Raises:
            DataError: The data does not fit the model.
            StepError: There is nothing to learn from or to train, or the loss is not finite.
        """
        verdict = self.check(model, context)
        if verdict.status != "ok":
            raise StepError(
                f"recover has nothing to do: {verdict.reason}",
                expected="a model that a lossy step changed, its source, and data",
                why="the step would change nothing",
                fix="remove the step, or put it behind a lossy one",
            )
        thawed = _thawed(model.ir, context.options)
        structure = find_structure(thawed.model)
        weights = _weights(model.with_ir(thawed.model), structure, context.options, context.notes)
        recovered = _way(context.options)(model.with_ir(thawed.model), structure, weights, context)
        return model.with_ir(refreeze(model.ir, recovered, thawed))


_Way = Callable[[Model, Structure, tuple[TrainedWeight, ...], Context[RecoverOptions]], ir.Model]


def _way(options: RecoverOptions) -> _Way:
    """Return the function that does what `how` says; imported here, since closed forms need no torch."""
    if options.how == "closed-form":
        from edgesmith_recovery.reconstruction.closed_form import solve_layers

        return solve_layers
    if options.how == "blocks":
        from edgesmith_recovery.reconstruction.blocks import train_blocks

        return train_blocks
    from edgesmith_recovery.training.whole import train_whole

    return train_whole


def _thawed(model: ir.Model, options: RecoverOptions) -> Thawed:
    return thaw(model) if options.train_codes else Thawed(model, {}, {})


def _check(model: Model, context: Context[RecoverOptions]) -> Verdict:
    options, source, data = context.options, context.source, context.calibration
    problem = unmatched_names(model.graph, options) or _data_problem(context) or _source_problem(model, context)
    if problem:
        return Verdict.refuse(problem)
    labelled = options.how == "distill" and options.labels_weight > 0 and data is not None and data.has_labels
    if source is not None and not labelled and source.digest() == model.digest():
        return Verdict.skip("the model is the source of this run, so there is nothing to recover")
    thawed = _thawed(model.ir, options).model
    structure = find_structure(thawed)
    weights = _weights(model.with_ir(thawed), structure, options, Notes())
    if not weights:
        return Verdict.skip("no weight can be trained: all are codes, zero, protected or not selected")
    problem = _form_problem(thawed.graph, structure, weights, context)
    if problem:
        return Verdict.refuse(problem)
    if options.how != "closed-form":
        import torch

        from edgesmith.execution.torch_graph import TorchGraph

        if options.device == "cuda" and not torch.cuda.is_available():
            return Verdict.refuse("torch finds no NVIDIA GPU here; set device to auto or cpu")
        TorchGraph(thawed)
        if source is not None:
            TorchGraph(source.ir)
    return Verdict.ok()


def _form_problem(
    graph: ir.Graph, structure: Structure, weights: tuple[TrainedWeight, ...], context: Context[RecoverOptions]
) -> str:
    """Return what `how` does not find in the graph, or an empty string."""
    if context.options.how == "distill" or context.source is None:
        return ""
    teacher = find_structure(context.source.ir)
    if context.options.how == "closed-form":
        found = find_layers(graph, structure, teacher, weights, Notes())
        return "" if found else "no linear layer of the source can be solved for; set how to distill or blocks"
    found_pairs = block_pairs(structure, teacher)
    return "" if found_pairs else "no blocks answer blocks of the source; set how to distill"


def _data_problem(context: Context[RecoverOptions]) -> str:
    options, data = context.options, context.calibration
    if data is None or len(data) < 2:
        return "it needs two or more calibration samples, to learn from and to decide by; pass them with --data"
    if options.how != "distill" and options.select != "all":
        return "data is selected for `how: distill` only; set select to all"
    return ""


def _source_problem(model: Model, context: Context[RecoverOptions]) -> str:
    """Return why there is no teacher, or an empty string."""
    options, source = context.options, context.source
    if source is None:
        labelled = context.calibration is not None and context.calibration.has_labels and options.labels_weight > 0
        if options.how == "distill" and labelled and options.select == "all":
            return ""
        return "the source model of the run is not known, and there are no labels to learn from instead"
    ours, theirs = _signature(model.graph), _signature(source.graph)
    if ours != theirs:
        return "inputs or outputs are not those of the source model, so answers cannot be compared"
    return ""


def _signature(graph: ir.Graph) -> Mapping[str, ir.DataType | None]:
    inputs = {f"input {value.name}": value.dtype for value in graph.inputs if not value.is_initializer()}
    return inputs | {f"output {value.name}": value.dtype for value in graph.outputs}


def _weights(model: Model, structure: Structure, options: RecoverOptions, notes: Notes) -> tuple[TrainedWeight, ...]:
    protection = None if options.protect is None else Protection.chosen(options.protect, model.assets)
    return find_weights(model.graph, structure, options, protection, notes)
