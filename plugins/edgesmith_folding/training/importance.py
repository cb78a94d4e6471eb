"""Gradients of the loss of a language model, summed up to what each block is worth."""

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.execution.training import torch_threads
from edgesmith_calibration.sources import DataSource
from edgesmith_folding.finding.places import Place
from edgesmith_folding.scores.taylor import taylor_importance


def importances(
    model: ir.Model,
    places: Mapping[int, Place],
    data: DataSource,
    language_model: tuple[str, str],
    *,
    batch_size: int = 1,
    threads: int = 1,
) -> dict[int, float]:
    """Return the Taylor score of each block.

    Args:
        model: The graph that the blocks were found in.
        places: The blocks by number.
        data: Samples.
        language_model: Names of the input with the tokens and the output with the logits.
        batch_size: Samples per run.
        threads: Threads of torch.
    """
    tokens, logits = language_model
    own = {number: _own_weights(place) for number, place in places.items()}
    with torch_threads(threads):
        graph = TorchGraph(model).requires_grad_(False)
        parameters = dict(graph.named_parameters())
        used = [parameters[name].requires_grad_() for names in own.values() for name in names if name in parameters]
        for batch in data.batches(batch_size):
            inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
            share = batch.size / len(data)
            (share * token_loss(graph(inputs)[logits], inputs[tokens])).backward()  # type: ignore[no-untyped-call]
        if not used:
            return dict.fromkeys(places, 0.0)
        return {number: taylor_importance(_with_gradients(parameters, names)) for number, names in own.items()}


def token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of each token given those before it."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def _own_weights(place: Place) -> tuple[str, ...]:
    """Return the names of the weights that this block alone reads, without single numbers."""
    read = {value for node in place.nodes for value in node.inputs if value is not None and value.is_initializer()}
    several = {value for value in read if value.const_value is not None and value.const_value.size > 1}
    return tuple(sorted(str(value.name) for value in several if place.nodes.issuperset(value.consumers())))


def _with_gradients(parameters: Mapping[str, Tensor], names: tuple[str, ...]) -> list[tuple[Tensor, Tensor]]:
    pairs = [(parameters[name].detach(), parameters[name].grad) for name in names if name in parameters]
    return [(weight, gradient) for weight, gradient in pairs if gradient is not None]
