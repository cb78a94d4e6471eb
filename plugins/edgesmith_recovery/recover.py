"""The method `recover`: repairs what lossy steps cost, by learning from the source model on unlabelled data."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.data import first_batch, fixed_batch_size
from edgesmith.errors import EdgesmithError, StepError
from edgesmith.graph.cache import caches_of
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.host.context import Context, Notes
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.protection import Protection
from edgesmith_recovery.finding.codes import Thawed, refreeze, thaw
from edgesmith_recovery.finding.layers import find_layers
from edgesmith_recovery.finding.outputs import compared_outputs, logits_of
from edgesmith_recovery.finding.pairs import Pair, block_pairs
from edgesmith_recovery.finding.weights import TrainedWeight, find_weights
from edgesmith_recovery.options.recover import RecoverOptions
from edgesmith_recovery.training.data import samples_of


class Recover(Method[RecoverOptions]):
    """Trains the graph as it will be deployed against the model that the run started from.

    Zeros, protected channels, shared weights and quantizers stay what they are. The result never has a higher
    loss on held-out calibration data than what was given.
    """

    def check(self, model: Model, context: Context[RecoverOptions]) -> Verdict:
        """Return whether there is something to learn from, and something to train."""
        try:
            found = _prepare(model, context, Notes())
            if isinstance(found, Verdict):
                return found
            if context.options.how != "closed-form":
                _require_torch_graphs(found.thawed.model, context.source)
        except EdgesmithError as error:
            return Verdict.refuse(f"{error.what}; {error.fix}")
        return Verdict.ok()

    def apply(self, model: Model, context: Context[RecoverOptions]) -> Model:
        """Return the recovered model.

        Raises:
            DataError: The data does not fit the model.
            RecipeError: The file with protected channels does not.
            StepError: There is nothing to learn from or to train, or the loss is not finite.
            UnsupportedOperatorError: A graph cannot be trained.
        """
        found = _prepare(model, context, context.notes)
        if isinstance(found, Verdict):
            raise StepError(
                f"recover has nothing to do: {found.reason}",
                expected="a model that a lossy step changed, its source, and data",
                why="The step would change nothing.",
                fix="Remove the step, or put it behind a lossy one.",
            )
        student = model.with_ir(found.thawed.model)
        recovered = _way(context.options)(student, found.structure, found.weights, context)
        return model.with_ir(refreeze(model.ir, recovered, found.thawed))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is trained: the graph with its codes thawed, its structure, and the weights."""

    thawed: Thawed
    structure: Structure
    weights: tuple[TrainedWeight, ...]


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


def _prepare(model: Model, context: Context[RecoverOptions], notes: Notes) -> _Prepared | Verdict:
    """Return what is trained, or why nothing is. Weights that stay are named in the notes."""
    options, source, data = context.options, context.source, samples_of(context)
    problem = (
        unmatched_names(model.graph, options)
        or _data_problem(model, context)
        or _source_problem(model, context)
        or _device_problem(options)
    )
    if problem:
        return Verdict.refuse(problem)
    labelled = options.how == "distill" and options.labels_weight > 0 and data is not None and data.has_labels
    if source is not None and not labelled and source.digest() == model.digest():
        return Verdict.skip("the model is the source of this run, so there is nothing to recover")
    thawed = _thawed(model.ir, options)
    structure = find_structure(thawed.model)
    weights = _weights(model.with_ir(thawed.model), structure, options, notes)
    if not weights:
        return Verdict.skip("no weight can be trained: all are codes, zero, protected or not selected")
    problem = _form_problem(thawed.model.graph, structure, weights, context)
    return Verdict.refuse(problem) if problem else _Prepared(thawed, structure, weights)


def _require_torch_graphs(student: ir.Model, source: Model | None) -> None:
    """Try whether torch can train the student and run the source.

    Raises:
        UnsupportedOperatorError: It cannot.
    """
    from edgesmith.execution.torch_graph import TorchGraph

    TorchGraph(student)
    if source is not None:
        TorchGraph(source.ir)


def _device_problem(options: RecoverOptions) -> str:
    if options.how == "closed-form" or options.device != "cuda":
        return ""
    import torch

    return "" if torch.cuda.is_available() else "torch finds no NVIDIA GPU here; set device to auto or cpu"


def _form_problem(
    graph: ir.Graph, structure: Structure, weights: tuple[TrainedWeight, ...], context: Context[RecoverOptions]
) -> str:
    """Return what `how` does not find in the graph, or an empty string."""
    if context.source is None:
        return ""
    teacher = find_structure(context.source.ir)
    pairs = block_pairs(structure, teacher, graph, context.source.graph)
    if context.options.how == "distill":
        return _goal_problem(graph, structure, pairs, context)
    if not compared_outputs(graph):
        return "no output is a float, so nothing tells whether the result is better; set how to distill"
    if context.options.how == "closed-form":
        found = find_layers(graph, structure, teacher, weights, Notes())
        return "" if found else "no linear layer of the source can be solved for; set how to distill or blocks"
    return "" if pairs else "no blocks answer blocks of the source; set how to distill"


def _goal_problem(
    graph: ir.Graph, structure: Structure, pairs: tuple[Pair, ...], context: Context[RecoverOptions]
) -> str:
    """Return why the loss would have no part in it, or an empty string."""
    options, data = context.options, context.calibration
    floats = compared_outputs(graph, caches=options.caches)
    wants_outputs = options.outputs != "none" and options.outputs_weight > 0
    by_blocks = options.blocks != "none" and options.blocks_weight > 0
    has_logits = any(name in floats for name in logits_of(structure))
    by_labels = options.labels_weight > 0 and data is not None and data.has_labels and has_logits
    if (wants_outputs and floats) or by_labels or (by_blocks and pairs):
        return ""
    outputs = "no output is a float" if wants_outputs else "outputs are left out"
    blocks = "no blocks answer blocks of the source" if by_blocks else "blocks are left out"
    fix = "set outputs to auto" if floats else "set blocks to tail, or keep a float output, such as logits"
    return f"there is nothing to learn by: {outputs}, {blocks}, and labels do not count; {fix}"


def _data_problem(model: Model, context: Context[RecoverOptions]) -> str:
    options, data = context.options, samples_of(context)
    if data is None or len(data) < 2:
        return "it needs two or more calibration samples, to learn from and to decide by; pass them with --data"
    fixed = fixed_batch_size(model) or 1
    count = len(data) if options.samples is None else min(len(data), options.samples)
    if count < 2 * fixed:
        return (
            f"the graph takes {fixed} samples at once, so it needs {2 * fixed} calibration samples, to learn from and "
            f"to decide by, and gets {count}; pass more with --data, or raise `samples`"
        )
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
    if ours != {name: kind for name, kind in theirs.items() if name not in _removed_slots(ours, source.graph)}:
        return "inputs or outputs are not those of the source model, so answers cannot be compared"
    return _missing_inputs(source, context)


def _missing_inputs(source: Model, context: Context[RecoverOptions]) -> str:
    """Return which inputs of the source the samples lack, or an empty string. One sample tells.

    Raises:
        DataError: The samples cannot be read.
    """
    data = samples_of(context)
    if data is None:
        return ""
    given = first_batch(data.take(1), 1).inputs
    wanted = [str(value.name) for value in source.graph.inputs if not value.is_initializer()]
    missing = [name for name in wanted if name not in given]
    if not missing:
        return ""
    return (
        f"the samples lack {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''} of the source's inputs, so it "
        "cannot be run on them; pass data with all inputs of the source, also with those that a step before took away"
    )


def _signature(graph: ir.Graph) -> Mapping[str, ir.DataType | None]:
    inputs = {f"input {value.name}": value.dtype for value in graph.inputs if not value.is_initializer()}
    return inputs | {f"output {value.name}": value.dtype for value in graph.outputs}


def _removed_slots(ours: Collection[str], source: ir.Graph) -> set[str]:
    """Return inputs and outputs of the source that hold keys and values of blocks that the model has no more."""
    slots = ((f"input {cache.input.name}", f"output {cache.output.name}") for cache in caches_of(source))
    return {name for slot in slots if not any(name in ours for name in slot) for name in slot}


def _weights(model: Model, structure: Structure, options: RecoverOptions, notes: Notes) -> tuple[TrainedWeight, ...]:
    protection = None if options.protect is None else Protection.chosen(options.protect, model.assets)
    return find_weights(model.graph, structure, options, protection, notes)
