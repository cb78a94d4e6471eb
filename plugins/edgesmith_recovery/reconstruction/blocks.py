"""Block by block with gradients: each learns to give what the source's block gives, on what reaches it now.

Zimmer et al., PERP, arXiv 2312.15230, section 3.3. Memory is that of training one block, whatever the depth.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from edgesmith.execution.segments import SegmentedRun
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.execution.training import relative_error, torch_threads
from edgesmith.execution.unpadded import Padding, find_padding
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith.progress import SilentProgress
from edgesmith_calibration.sources import DataSource
from edgesmith_recovery.finding.pairs import Pair, block_pairs
from edgesmith_recovery.finding.segments import cut
from edgesmith_recovery.finding.weights import TrainedWeight
from edgesmith_recovery.options.recover import RecoverOptions
from edgesmith_recovery.reconstruction.distance import better_of, output_error
from edgesmith_recovery.training.checkpoint import Checkpoint
from edgesmith_recovery.training.data import training_samples
from edgesmith_recovery.training.trainer import Advance, Trainer
from edgesmith_recovery.training.weights import TrainedWeights, write_weights
from edgesmith_recovery.training.whole import choose_device, low_rank, make_regime

Array = NDArray[Any]
_GIVEN, _TARGET = "given", "target"


def train_blocks(
    model: Model, structure: Structure, weights: tuple[TrainedWeight, ...], context: Context[RecoverOptions]
) -> ir.Model:
    """Return the graph with blocks that give what the source's blocks give.

    The error of a block on held-out samples never rises: its best state, the start included, is the one that stays.
    """
    source = context.source
    if source is None:  # `check` refuses such a context
        raise ValueError("no source")
    pairs = block_pairs(structure, find_structure(source.ir), model.graph, source.graph)
    data, split, batch_size = training_samples(model, context)
    padding, _ = find_padding(model.ir, structure.attentions)
    parts = {"training": data.select(split.training), "held-out": data.select(split.held_out)}
    place = Checkpoint(None if context.checkpoint is None else context.checkpoint / "blocks")
    repaired, done = _resumed(place)
    result = write_weights(model.ir, repaired)
    owned = _owned(result, pairs, weights, context)
    walks = {name: _Walk(result, source.ir, pairs, part, batch_size, context) for name, part in parts.items()}
    advances = []
    # Of all blocks, so that a resumed run gives each what it would have had.
    share = 1 / max(sum(map(bool, owned)), 1)
    with torch_threads(context.threads):
        for index in context.progress.track(range(len(pairs)), "training blocks", len(pairs)):
            batches = {name: walk.prepare(index) for name, walk in walks.items()}
            if index >= done and owned[index]:
                start = pairs[index - 1].student if index else None
                segment = _Segment(cut(result, start, pairs[index].student), start, pairs[index].student, padding)
                files = batches["training"], batches["held-out"]
                advance, trained = _train(segment, *files, owned[index], share, context)
                advances.append(advance)
                repaired |= trained
                _replace(result, trained)
                place.save(repaired, {"done": index + 1})
            for walk in walks.values():
                walk.step()
    return better_of(
        model.ir,
        result,
        lambda each: output_error(
            each, source.ir, parts["held-out"], padding, batch_size=batch_size, threads=context.threads
        ),
        _summary(advances, done),
        context,
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    """One block as a graph of its own."""

    graph: ir.Model
    start: str | None
    end: str
    padding: Padding | None


class _Batches:
    """Batches of one block in files: graph inputs, the value that the block is given, and its target."""

    def __init__(self, files: Sequence[Path], held_out: Sequence[Path], seed: int) -> None:
        self._files, self._held_out, self._seed = files, held_out, seed

    @property
    def count(self) -> int:
        """Batches per epoch."""
        return len(self._files)

    def order(self, epoch: int) -> Sequence[int]:
        """Return the batches of an epoch."""
        return [int(index) for index in np.random.default_rng((self._seed, epoch)).permutation(self.count)]

    def load(self, key: int) -> Mapping[str, Array]:
        """Return one of them."""
        return _read(self._files[key])

    def held_out(self) -> Iterator[tuple[Mapping[str, Array], int]]:
        """Yield the batches to decide by, each with its number of samples."""
        for path in self._held_out:
            batch = _read(path)
            yield batch, len(next(iter(batch.values())))


class _BlockError:
    """The relative error of a block's output on one batch."""

    def __init__(self, block: TorchGraph, weights: TrainedWeights, segment: _Segment) -> None:
        self._block, self._weights, self._segment = block, weights, segment
        self._inputs = {str(value.name) for value in segment.graph.graph.inputs}

    def __call__(self, batch: Mapping[str, Array], *, deployed: bool = False) -> Tensor:
        """Return it, with a gradient unless `deployed`."""
        segment, device = self._segment, self._block.device
        tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
        inputs = {name: tensor for name, tensor in tensors.items() if name in self._inputs}
        if segment.start is not None:
            inputs[segment.start] = tensors[_GIVEN]
        with torch.set_grad_enabled(not deployed):
            found = functional_call(self._block, self._weights.effective(deployed=deployed), (inputs,))[segment.end]
            shown = None if segment.padding is None else tensors[segment.padding.mask] != 0
            fits = shown is not None and found.ndim > 2 and found.shape[:2] == shown.shape
            return relative_error(found, tensors[_TARGET], shown if fits else None)


def _train(
    segment: _Segment,
    training: Sequence[Path],
    held_out: Sequence[Path],
    weights: tuple[TrainedWeight, ...],
    share: float,
    context: Context[RecoverOptions],
) -> tuple[Advance, dict[str, Tensor]]:
    """Train one block for its share of the time, and return how it went, with its weights."""
    options = context.options
    block = TorchGraph(segment.graph, device=choose_device(options))
    trained = TrainedWeights(block, weights, low_rank(options), context.seed)
    batches = _Batches(training, held_out, context.seed)
    objective = _BlockError(block, trained, segment)
    regime = make_regime(options, batches.count)
    regime = replace(regime, seconds=None if regime.seconds is None else share * regime.seconds)
    trainer: Trainer[int, Mapping[str, Array]] = Trainer(trained, objective, batches, regime)
    advance = trainer.run(SilentProgress(), "")
    return advance, {name: tensor.cpu() for name, tensor in trained.merged().items()} if advance.best_step else {}


class _Walk:
    """Goes through student and source side by side, block by block, and keeps in files what the next block needs."""

    def __init__(
        self,
        student: ir.Model,
        source: ir.Model,
        pairs: Sequence[Pair],
        data: DataSource,
        batch_size: int,
        context: Context[RecoverOptions],
    ) -> None:
        scratch = context.scratch
        self._student, self._source = (
            SegmentedRun(graph, stops, data, scratch=scratch, batch_size=batch_size, threads=context.threads)
            for graph, stops in (
                (student, [[pair.student] for pair in pairs]),
                (source, [[pair.teacher] for pair in pairs]),
            )
        )
        self._pairs, self._index = pairs, 0
        self._folder = scratch / f"batches-{id(self):x}"
        self._folder.mkdir()
        count = 0
        for count, batch in enumerate(data.batches(batch_size), 1):
            np.savez(self._folder / f"inputs-{count - 1}.npz", allow_pickle=False, **batch.inputs)
        self._count = count

    def prepare(self, index: int) -> list[Path]:
        """Return the files of a block's batches. What it is given was written by the step before."""
        for number, values in enumerate(self._source.advance()):
            np.save(self._folder / f"{_TARGET}-{number}.npy", values[self._pairs[index].teacher])
        return [self._folder / f"inputs-{number}.npz" for number in range(self._count)]

    def step(self) -> None:
        """Run the student's block with the weights that it has now."""
        name = self._pairs[self._index].student
        for number, values in enumerate(self._student.advance()):
            np.save(self._folder / f"{_GIVEN}-{number}.npy", values[name])
        self._index += 1


def _read(inputs: Path) -> Mapping[str, Array]:
    number = inputs.stem.partition("-")[2]
    with np.load(inputs, allow_pickle=False) as archive:
        arrays = dict(archive)
    for name in (_GIVEN, _TARGET):
        path = inputs.with_name(f"{name}-{number}.npy")
        if path.exists():
            arrays[name] = np.load(path, allow_pickle=False)
    return arrays


def _owned(
    model: ir.Model, pairs: Sequence[Pair], weights: tuple[TrainedWeight, ...], context: Context[RecoverOptions]
) -> list[tuple[TrainedWeight, ...]]:
    """Return the weights that each block trains. One that several blocks read stays, since each wants another."""
    starts = [None, *(pair.student for pair in pairs)]
    inside = [
        set(cut(model, start, pair.student).graph.initializers) for start, pair in zip(starts, pairs, strict=False)
    ]
    uses = Counter(name for names in inside for name in names)
    shared = [weight.name for weight in weights if uses[weight.name] > 1]
    if shared:
        context.notes.remark(f"{len(shared)} weights are shared by several blocks and stay: {', '.join(shared[:3])}.")
    return [tuple(each for each in weights if each.name in names and uses[each.name] == 1) for names in inside]


def _replace(model: ir.Model, weights: Mapping[str, Tensor]) -> None:
    """Put weights into the graph that the walks are running on."""
    for name, value in write_weights(model, weights).graph.initializers.items():
        model.graph.initializers[name].const_value = value.const_value


def _resumed(place: Checkpoint) -> tuple[dict[str, Tensor], int]:
    found = place.load()
    return ({}, 0) if found is None else (found[0], int(found[1]["done"]))


def _summary(advances: Sequence[Advance], done: int) -> str:
    if not advances:
        return "No block was trained in this run"
    was = sum(each.start_loss for each in advances) / len(advances)
    is_now = sum(each.best_loss for each in advances) / len(advances)
    slowed = sum(each.slowed > 0 for each in advances)
    rates = f", {slowed} of them at a lower rate than at first" if slowed else ""
    resumed = f" after {done} of an earlier run" if done else ""
    return (
        f"Trained {len(advances)} blocks{resumed}, whose mean error on held-out samples fell from {was:.4g} "
        f"to {is_now:.4g}{rates}"
    )
