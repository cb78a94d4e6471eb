"""Judge: how much worse a graph answers on calibration data when blocks are left out."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.observe import fixed_batch
from edgesmith.graph.dataflow import CARRYING, Dataflow
from edgesmith.graph.structure import Structure
from edgesmith_calibration.sources import DataSource
from edgesmith_folding.running.chain import BlockChain, Key
from edgesmith_folding.scores.losses import next_token_loss, squared_error, token_loss

Arrays = Mapping[str, NDArray[Any]]

_ROUNDING = 1e-4


class Judge:
    """Measures the mean loss of a graph without some blocks.

    The loss of a causal language model is that of its own tokens; of other graphs the relative squared distance of
    their outputs from those with all blocks.

    Args:
        model: The graph.
        structure: Its structure.
        chain: Runs it.
        data: Samples; labels are not used.
        batch_size: Samples per run.
        tokens: Tokens of each sample whose loss counts, evenly spaced; None for all. The head of a language model often
            costs more than ten blocks.
    """

    def __init__(
        self,
        model: ir.Model,
        structure: Structure,
        chain: BlockChain,
        data: DataSource,
        *,
        batch_size: int = 1,
        tokens: int | None = None,
    ) -> None:
        self._chain, self._data, self._tokens = chain, data, tokens
        self._by_position: bool | None = None
        self._batch_size = fixed_batch(model) or batch_size
        self.language_model = language_model_of(model, structure)
        """Names of the input with the tokens and the output with the logits; None for other graphs."""

    def loss(self, removed: Collection[int] = ()) -> float:
        """Return the loss without some blocks."""
        total = weight = 0.0
        for batch in self._data.batches(self._batch_size):
            positions = self._positions(batch.inputs)
            part, size = self._measure(batch.inputs, self._chain.run(batch.inputs, removed, positions), None, positions)
            total, weight = total + part, weight + size
        return total / max(weight, 1.0)

    def losses_without(self, removed: Collection[int], tried: Collection[int]) -> dict[int, float]:
        """Return the loss without one block more, for each block to try."""
        totals: dict[int, float] = defaultdict(float)
        weights: dict[int, float] = defaultdict(float)
        for batch in self._data.batches(self._batch_size):
            reference = None if self.language_model else self._chain.run(batch.inputs)
            positions = self._positions(batch.inputs)
            for number, outputs in self._chain.run_without_each(batch.inputs, removed, tried, positions):
                part, size = self._measure(batch.inputs, outputs, reference, positions)
                totals[number] += part
                weights[number] += size
        return {number: totals[number] / max(weights[number], 1.0) for number in totals}

    def losses_with(self, others: Callable[[int], Iterable[tuple[Key, ir.Model]]]) -> dict[Key, float]:
        """Return the loss with one block as another graph has it, by the key of that graph (see `BlockChain`)."""
        totals: dict[Key, float] = defaultdict(float)
        weight = 0.0
        for batch in self._data.batches(self._batch_size):
            reference = None if self.language_model else self._chain.run(batch.inputs)
            positions = self._positions(batch.inputs)
            size = 0.0
            for key, outputs in self._chain.run_with_each(batch.inputs, others, positions):
                part, size = self._measure(batch.inputs, outputs, reference, positions)
                totals[key] += part
            weight += size
        return {key: total / max(weight, 1.0) for key, total in totals.items()}

    def _positions(self, inputs: Arrays) -> NDArray[np.intp] | None:
        """Return the positions whose loss counts, or None for all."""
        if self.language_model is None or self._tokens is None:
            return None
        tokens, logits = self.language_model
        count = inputs[tokens].shape[1] - 1
        if count <= self._tokens:
            return None
        positions = np.linspace(0, count - 1, self._tokens).astype(np.intp)
        if self._by_position is None:
            # Whether each position has a result of its own behind the last block is seen once, by trying.
            whole, some = self._chain.run(inputs)[logits], self._chain.run(inputs, (), positions)[logits]
            wanted = whole[:, positions]
            scale = float(np.abs(wanted).max(initial=0.0))
            alike = some.shape == wanted.shape and float(np.abs(some - wanted).max(initial=0.0)) <= _ROUNDING * scale
            self._by_position = alike
        return positions if self._by_position else None

    def _measure(
        self, inputs: Arrays, outputs: Arrays, reference: Arrays | None, positions: NDArray[np.intp] | None
    ) -> tuple[float, float]:
        if self.language_model:
            tokens, logits = self.language_model
            if positions is not None:
                return token_loss(outputs[logits], inputs[tokens][:, positions + 1])
            return next_token_loss(outputs[logits], inputs[tokens])
        wanted = self._chain.run(inputs) if reference is None else reference
        return squared_error(outputs, {name: array for name, array in wanted.items() if name in outputs})


def language_model_of(model: ir.Model, structure: Structure) -> tuple[str, str] | None:
    """Return the names of the input with the tokens and the output with the logits of a causal language model.

    None for a graph that scores no tokens at each position, or that sees later ones.
    """
    causal = [attention.causal for attention in structure.attentions]
    if not causal or not all(causal):
        return None
    flow = Dataflow(model)
    nodes = {node.name: node for node in model.graph}
    inputs = {value.name for value in model.graph.inputs}
    tables = [embedding for embedding in structure.embeddings if embedding.kind == "token"]
    outputs = {value.name: value for value in model.graph.outputs}
    for embedding in tables:
        node = nodes.get(embedding.node)
        indices = None if node is None or len(node.inputs) < 2 or node.inputs[1] is None else node.inputs[1]
        # Some exporters flatten the batch first, which keeps the tokens' shape.
        tokens = None if indices is None else flow.skip_back(indices, CARRYING | {"Reshape"})
        for head in structure.heads:
            value = outputs.get(head.output)
            if tokens is None or tokens.name not in inputs or head.classes != embedding.rows or value is None:
                continue
            if value.shape is not None and value.shape.rank() == 3:
                return str(tokens.name), head.output
    return None
