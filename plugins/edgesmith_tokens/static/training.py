"""The trained form: maps are softmaxes of logits, which learn to give the features of the model before.

A map that does not look at the image has the same divergence from all maps of the teacher as from their mean, up to a
number that training cannot change: E[KL(A || S)] = KL(E[A] || S) + const. So the guidance needs the mean maps only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgesmith.data import required_data
from edgesmith.graph.edit import GraphEditor, set_initializer
from edgesmith.graph.outputs import float_outputs
from edgesmith.host.context import Context
from edgesmith_calibration.sources import Batch
from edgesmith_tokens.options.static import StaticAttentionOptions
from edgesmith_tokens.static.formulas import row_logarithm
from edgesmith_tokens.static.measure import StaticMap
from edgesmith_tokens.training import Feature, Regime, train_features


def train_maps(
    given: ir.Model,
    written: ir.Model,
    maps: Mapping[str, StaticMap],
    stream: str,
    context: Context[StaticAttentionOptions],
) -> str:
    """Train the maps of a graph in place, and return what to report.

    Args:
        given: The graph before, which teaches.
        written: The graph with maps whose rows sum to 1.
        maps: The maps by the initializer that holds them.
        stream: Value behind the last of the blocks; compared beside the outputs.
        context: Options, data, seed, progress.
    """
    options = context.options
    data = required_data(context.calibration, "training static maps", why="they learn on it").take(options.samples)
    student, logits = with_logits(written, list(maps))
    outputs = float_outputs(given.graph)
    features = [Feature(name) for name in dict.fromkeys((stream, *outputs))]
    regime = Regime(
        epochs=options.epochs,
        seconds=60 * options.minutes,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        held_out=options.held_out,
        seed=context.seed,
        threads=context.threads,
    )
    means = {logits[name]: torch.from_numpy(each.mean[None].astype(np.float32)) for name, each in maps.items()}
    labels = options.labels_weight if data.has_labels and outputs else 0.0
    extra = _extra(means, options.guidance, labels, (*outputs, stream)[0])
    outcome = train_features(
        student, list(logits.values()), given, features, data, regime, context.progress, extra=extra
    )
    for name in maps:
        value = written.graph.initializers[name]
        trained = row_softmax(outcome.weights[logits[name]])
        set_initializer(value, trained.astype((value.dtype or ir.DataType.FLOAT).numpy()))
    return (
        f"Trained the maps for {outcome.steps} steps; the error of the features on {outcome.samples} samples held out "
        f"went from {outcome.before:.4g} to {outcome.after:.4g}."
    )


def with_logits(model: ir.Model, maps: list[str]) -> tuple[ir.Model, dict[str, str]]:
    """Return a copy of a graph whose maps are softmaxes of logits, and the logits' initializer for each map."""
    copy = model.clone()
    editor = GraphEditor(copy.graph)
    logits = {}
    for name in maps:
        value = copy.graph.initializers[name]
        if value.const_value is None:  # a map has numbers
            raise ValueError(name)
        array = row_logarithm(value.const_value.numpy().astype(np.float32))
        (reader,) = {node for node, _ in value.uses()}
        made = editor.add_initializer(f"{name}.logits", array)
        soft = editor.insert_before(reader, "Softmax", (made,), {"axis": -1}).outputs[0]
        if value.dtype != ir.DataType.FLOAT and value.dtype is not None:
            soft = editor.insert_before(reader, "Cast", (soft,), {"to": int(value.dtype)}).outputs[0]
        editor.replace_uses(value, soft)
        copy.graph.initializers.pop(name)
        logits[name] = str(made.name)
    return copy, logits


def row_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the softmax over the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    soft: NDArray[np.float64] = shifted / shifted.sum(-1, keepdims=True)
    return soft


def divergence(mean: Tensor, logits: Tensor) -> Tensor:
    """Return KL(M || softmax(P)), the mean over heads and rows, for M and P [1, heads, tokens, tokens]."""
    logarithm = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    return (mean * (logarithm - logits.log_softmax(-1))).sum(-1).mean()


def _extra(
    means: Mapping[str, Tensor], guidance: float, labels: float, output: str
) -> Callable[[Mapping[str, Tensor], Batch, Mapping[str, Tensor]], Tensor]:
    """Return what the loss holds besides the error of the features."""

    def extra(leaves: Mapping[str, Tensor], batch: Batch, found: Mapping[str, Tensor]) -> Tensor:
        loss = guidance * torch.stack([divergence(mean, leaves[name]) for name, mean in means.items()]).mean()
        if labels and batch.labels is not None:
            loss = loss + labels * functional.cross_entropy(found[output], torch.from_numpy(batch.labels))
        return loss

    return extra
