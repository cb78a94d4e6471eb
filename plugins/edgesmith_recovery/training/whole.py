"""Training of the whole graph against the source: `how: distill`."""

from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch

from edgesmith.execution.split import Split
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.execution.training import torch_threads
from edgesmith.execution.unpadded import find_padding, why_padding_stays
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_recovery.finding.pairs import block_pairs
from edgesmith_recovery.finding.weights import TrainedWeight, trained_count
from edgesmith_recovery.options.recover import RecoverOptions
from edgesmith_recovery.selection.choose import compared, select_samples
from edgesmith_recovery.training.checkpoint import Checkpoint
from edgesmith_recovery.training.data import SampleBatches, training_samples
from edgesmith_recovery.training.distillation import Distillation, make_goal
from edgesmith_recovery.training.trainer import Advance, Regime, Trainer
from edgesmith_recovery.training.weights import LowRank, TrainedWeights, write_weights


def train_whole(
    model: Model, structure: Structure, weights: tuple[TrainedWeight, ...], context: Context[RecoverOptions]
) -> ir.Model:
    """Return the graph with trained weights."""
    options, source = context.options, context.source
    data, split, batch_size = training_samples(model, context)
    device = choose_device(options)
    taught = structure if source is None else find_structure(source.ir)
    padding, _ = find_padding(model.ir, structure.attentions)
    reason = why_padding_stays(model.ir, structure.attentions, data)
    if reason:
        context.notes.remark(f"Padded positions count in the loss: {reason}.")
    if options.select == "paser" and source is not None:
        graphs = compared(model.ir, source.ir, structure, taught, padding)
        split = replace(split, training=select_samples(graphs, data, split.training, context))
    pairs = () if source is None else block_pairs(structure, taught, model.graph, source.graph)
    with torch_threads(context.threads):
        student = TorchGraph(model.ir, device=device)
        teacher = None if source is None else TorchGraph(source.ir, device=device).requires_grad_(False)
        goal = make_goal(model.graph, structure, pairs, options, has_labels=data.has_labels)
        trained = TrainedWeights(student, weights, low_rank(options), context.seed)
        mixed = device.type == "cuda" and options.precision == "auto"
        objective = Distillation(student, teacher, trained, goal, padding=padding, mixed=mixed)
        batches = SampleBatches(data, split, batch_size, padding, context.seed)
        regime = make_regime(options, batches.count)
        place = None if context.checkpoint is None else context.checkpoint / "training"
        trainer = Trainer(trained, objective, batches, regime, checkpoint=Checkpoint(place))
        advance = trainer.run(context.progress, "recovering")
        count = trained_count(model.graph, weights)
        context.notes.remark(f"{_summary(advance, count, trained, split)} {_rate(trainer, advance)}")
        return write_weights(model.ir, trained.merged()) if advance.best_step else model.ir.clone()


def make_regime(options: RecoverOptions, batches: int) -> Regime:
    """Return how long and how fast to train on so many batches per epoch."""
    return Regime(
        steps=options.steps or max(1, round(options.epochs * batches / options.accumulate)),
        seconds=None if options.minutes is None else 60 * options.minutes,
        learning_rate=options.highest_rate,
        slows_down=options.learning_rate is None,
        warm_up=options.warm_up,
        decay=options.decay,
        weight_decay=options.weight_decay,
        clip=options.clip,
        accumulate=options.accumulate,
        evaluations=options.evaluations,
        patience=options.patience,
        checkpoint_steps=options.checkpoint_steps,
    )


def low_rank(options: RecoverOptions) -> LowRank | None:
    """Return how matrices are trained; None for entry by entry."""
    if options.parameters != "low-rank":
        return None
    return LowRank(options.adapter, options.rank, options.alpha / options.rank)


def choose_device(options: RecoverOptions) -> torch.device:
    """Return where to train."""
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(options.device)


def _summary(advance: Advance, count: int, trained: TrainedWeights, split: Split) -> str:
    numbers = sum(leaf.numel() for leaf in trained.leaves.values())
    what = f"{numbers:,} numbers for {count:,} weights" if numbers < count else f"{count:,} weights"
    held = f"{split.held_out.size} held-out sample{'s' if split.held_out.size > 1 else ''}"
    did = f"Trained {what} for {advance.step} steps; the loss on {held}"
    if not advance.best_step:
        return f"{did} never fell below {advance.start_loss:.4g}, so all stay as they were."
    return f"{did} fell from {advance.start_loss:.4g} to {advance.best_loss:.4g}, reached at step {advance.best_step}."


def _rate(trainer: Trainer[Any, Any], advance: Advance) -> str:
    if not advance.slowed:
        return f"The learning rate was {trainer.learning_rate:.3g}."
    times = "once" if advance.slowed == 1 else f"{advance.slowed} times"
    return f"The learning rate came down to {trainer.learning_rate:.3g}: {times} the loss was above that of the start."
