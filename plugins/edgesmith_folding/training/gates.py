"""Trains gates on the branches of a graph; all its weights stay as they are."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.execution.training import divergence, relative_error, torch_threads
from edgesmith.progress import Progress
from edgesmith_calibration.sources import DataSource
from edgesmith_folding.finding.places import Place
from edgesmith_folding.scores.gates import epsilon_at, excess, gates
from edgesmith_folding.training.gated import Branch, find_branches, with_gates

_DOUBLE_EVERY = 50


@dataclass(frozen=True, slots=True)
class GateTraining:
    """How gates are trained."""

    steps: int
    learning_rate: float
    budget: float
    """Share of the MACs of all blocks that may be left."""
    batch_size: int
    seed: int
    threads: int


def train_gates(
    model: ir.Model,
    places: Mapping[int, Place],
    pinned: Mapping[int, Place],
    data: DataSource,
    output: str | None,
    plan: GateTraining,
    progress: Progress,
) -> dict[Branch, float]:
    """Return the gate of each branch (FoldGPT, arXiv 2407.00928).

    The loss is the divergence from the network with open gates, and the excess over the budget, whose weight doubles
    every 50 steps as long as there is any.

    Args:
        model: The graph that the blocks were found in.
        places: The blocks whose branches get a gate.
        pinned: The other blocks, whose gates stay open.
        data: Samples to train on.
        output: Name of the logits of a language model; None compares all outputs by their squared distance.
        plan: How long and how fast.
        progress: Shows the advance.
    """
    branches = find_branches(model, places)
    fixed = sum(branch.macs for branch in find_branches(model, pinned))
    costs = torch.tensor([*(branch.macs for branch in branches), fixed], dtype=torch.float32)
    numbers = torch.ones(len(branches), requires_grad=True)
    optimizer, weight = torch.optim.Adam([numbers], lr=plan.learning_rate), 1.0
    with torch_threads(plan.threads):
        graph = TorchGraph(with_gates(model, places, branches)).requires_grad_(False)
        batches = _batches(data, plan)
        for step in progress.track(range(plan.steps), "training gates", total=plan.steps):
            inputs = next(batches)
            with torch.no_grad():
                dense = graph(inputs | _opened(branches, torch.ones(len(branches))))
            opened = gates(numbers, epsilon_at(step / max(plan.steps - 1, 1)))
            over = excess(torch.cat([opened, torch.ones(1)]), costs, plan.budget)
            loss = _distance(graph(inputs | _opened(branches, opened)), dense, output) + weight * over
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if (step + 1) % _DOUBLE_EVERY == 0 and float(over.detach()) > 0:
                weight *= 2
    final = gates(numbers.detach(), epsilon_at(1.0)).tolist()
    return dict(zip(branches, final, strict=True))


def block_gates(opened: Mapping[Branch, float]) -> dict[int, float]:
    """Return how far each block is open: the mean over its branches, weighted by their MACs."""
    whole: dict[int, float] = defaultdict(float)
    found: dict[int, float] = defaultdict(float)
    for branch, gate in opened.items():
        whole[branch.block] += branch.macs
        found[branch.block] += branch.macs * gate
    return {number: found[number] / whole[number] for number in whole}


def _opened(branches: tuple[Branch, ...], values: Tensor) -> dict[str, Tensor]:
    return {branch.gate: value for branch, value in zip(branches, values, strict=True)}


def _distance(found: Mapping[str, Tensor], dense: Mapping[str, Tensor], output: str | None) -> Tensor:
    if output is not None:
        return divergence(found[output], dense[output])
    errors = [relative_error(found[name], wanted) for name, wanted in dense.items() if wanted.is_floating_point()]
    return torch.stack(errors).mean()


def _batches(data: DataSource, plan: GateTraining) -> Iterator[dict[str, Tensor]]:
    """Yield batches without end, each round in another order."""
    generator = np.random.default_rng(plan.seed)
    while True:
        order = generator.permutation(len(data))
        for start in range(0, len(order), plan.batch_size):
            chosen = np.sort(order[start : start + plan.batch_size])
            for batch in data.select(chosen).batches(plan.batch_size):
                yield {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
