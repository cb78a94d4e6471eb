"""The training loop: AdamW on the trained weights, with a budget, held-out scores, checkpoints and the best state."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from edgesmith.errors import StepError
from edgesmith.progress import Progress
from edgesmith_recovery.arithmetic.schedule import rate_factor
from edgesmith_recovery.training.checkpoint import Checkpoint
from edgesmith_recovery.training.weights import TrainedWeights

Key = TypeVar("Key")
# With a time limit, so many held-out samples are scored on the way. All would be so dear that there were too few scores
# to notice a rate that is too high.
_PROBE_SAMPLES = 16
# And so much of the time may that take; more would be a training that only looks at itself.
_PROBING_SHARE = 0.2
# Rates that suit a badly damaged model and one that is nearly right lie two powers of ten apart.
_SLOWER = 10.0
_MOST_SLOWED = 4

Item = TypeVar("Item")
ItemOut = TypeVar("ItemOut", covariant=True)
ItemIn = TypeVar("ItemIn", contravariant=True)


class TrainingData(Protocol[Key, ItemOut]):
    """Batches to train on, and others to decide by."""

    @property
    def count(self) -> int:
        """Batches per epoch."""
        ...

    def order(self, epoch: int) -> Sequence[Key]:
        """Return the batches of an epoch; equal calls give equal orders."""
        ...

    def load(self, key: Key, /) -> ItemOut:
        """Return one of them."""
        ...

    def held_out(self) -> Iterator[tuple[ItemOut, int]]:
        """Yield the batches to decide by, each with its number of samples."""
        ...


class Objective(Protocol[ItemIn]):
    """The mean loss of a batch."""

    def __call__(self, batch: ItemIn, /, *, deployed: bool = False) -> Tensor:
        """Return it, with a gradient unless `deployed`."""
        ...


@dataclass(frozen=True, slots=True)
class Regime:
    """How long and how fast to train."""

    steps: int | None
    """Number of updates; None where only the time counts."""
    seconds: float | None
    """Longest time; None where only the steps count."""
    learning_rate: float
    slows_down: bool = False
    """Whether to go on from the best state at a tenth of the rate when a score is worse than the start."""
    warm_up: float = 0.1
    decay: str = "linear"
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulate: int = 1
    evaluations: int = 20
    patience: int = 6
    checkpoint_steps: int = 200

    def progress(self, step: float, seconds: float, around: float) -> float:
        """Return the share of the training that is done, by whichever limit is nearer.

        Args:
            step: Updates so far.
            seconds: Time of the training so far.
            around: Time that the scores before and behind it take.
        """
        by_steps = step / self.steps if self.steps else 0.0
        by_time = 0.0 if self.seconds is None else seconds / max(self.seconds - around, 1e-9)
        return min(max(by_steps, by_time), 1.0)


@dataclass(slots=True)
class Advance:
    """How far a training has come; all that a resumed one must know besides tensors."""

    step: int = 0
    seconds: float = 0.0
    """Time of the updates and of the scores between them."""
    around_seconds: float = 0.0
    """Time of the scores at the start and at the end, which take equally long."""
    start_loss: float = 0.0
    best_loss: float = 0.0
    best_step: int = 0
    probe_start: float = 0.0
    """Loss at the start on what is scored on the way."""
    probe_best: float = 0.0
    probe_seconds: float = 0.0
    """Time of the latest score on the way."""
    probing_seconds: float = 0.0
    """Time of all of them."""
    scored_step: int = 0
    scores: int = 0
    worse: int = 0
    """Scores in a row, those that lower the rate left out, that are no better than the best."""
    too_fast: bool = False
    """Whether the latest score asks for a lower rate."""
    slowed: int = 0
    """How often the rate was lowered."""


class Trainer(Generic[Key, Item]):
    """Trains until the budget is used up or scores no longer improve, and ends with the best state that was scored.

    With a time limit only some held-out samples are scored on the way. All of them are scored at the start and at the
    end, where the start comes back if it is no worse than the best state: the held-out score never gets worse.

    Args:
        weights: What is trained.
        objective: The loss.
        data: Batches.
        regime: How long and how fast.
        checkpoint: Where the state is kept; a state that is there is resumed.
        clock: Returns seconds.
    """

    def __init__(
        self,
        weights: TrainedWeights,
        objective: Objective[Item],
        data: TrainingData[Key, Item],
        regime: Regime,
        *,
        checkpoint: Checkpoint | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._weights, self._objective, self._data, self._regime = weights, objective, data, regime
        self._checkpoint, self._clock = checkpoint or Checkpoint(None), clock
        decaying = set(map(id, weights.decaying))
        leaves = list(weights.leaves.values())
        groups = [
            {"params": [leaf for leaf in leaves if id(leaf) in decaying], "weight_decay": regime.weight_decay},
            {"params": [leaf for leaf in leaves if id(leaf) not in decaying], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=regime.learning_rate)
        self._most_probed = None if regime.seconds is None else _PROBE_SAMPLES
        self._advance = Advance()
        self._best: dict[str, Tensor] = {}
        self._order: Sequence[Key] = ()
        self._epoch = -1

    @property
    def learning_rate(self) -> float:
        """The highest learning rate, as it is by now."""
        return self._regime.learning_rate / _SLOWER**self._advance.slowed

    def run(self, progress: Progress, description: str) -> Advance:
        """Train, leave the best state in the weights, and return how it went.

        Raises:
            StepError: The loss is not finite from the start.
        """
        start = self._weights.copy_leaves()
        if not self._resume():
            self._best = start
            self._begin()
        for _ in progress.track(self._percents(), description, total=100):
            pass
        if self._advance.scored_step != self._advance.step:
            self._judge()
        self._weights.load_leaves(self._best)
        if self._advance.best_step and not self._gained():
            self._weights.load_leaves(start)
        return self._advance

    def _percents(self) -> Iterator[int]:
        """Train, and yield each time another hundredth is done."""
        advance, regime, shown = self._advance, self._regime, 0
        done = self._progress(advance.step)
        while done < 1 and advance.worse < regime.patience:
            began = self._clock()
            self._update()
            advance.seconds += self._clock() - began
            done = self._progress(advance.step)
            if int(done * regime.evaluations) > advance.scores and self._may_score():
                advance.scores = int(done * regime.evaluations)
                self._judge()
            if advance.step % regime.checkpoint_steps == 0:
                self._save()
            while shown < int(done * 100):
                shown += 1
                yield shown

    def _update(self) -> None:
        regime = self._regime
        if self._advance.too_fast:
            self._slow_down()
        # The rate is that of the middle of the update, so that neither the first nor the last has none.
        progress = self._progress(self._advance.step + 0.5)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate * rate_factor(progress, regime.warm_up, regime.decay)
        for part in range(regime.accumulate):
            loss = self._objective(self._batch(self._advance.step * regime.accumulate + part))
            (loss / regime.accumulate).backward()  # type: ignore[no-untyped-call]
        self._weights.clear_frozen_gradients()
        norm = torch.nn.utils.clip_grad_norm_(list(self._weights.leaves.values()), regime.clip)
        # An update with a NaN would spoil every weight for good; the next batch may be fine.
        if torch.isfinite(norm):
            self._optimizer.step()
            self._weights.keep_frozen()
        self._optimizer.zero_grad(set_to_none=True)
        self._advance.step += 1

    def _batch(self, number: int) -> Item:
        epoch, place = divmod(number, self._data.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._data.order(epoch)
        return self._data.load(self._order[place])

    def _progress(self, step: float) -> float:
        return self._regime.progress(step, self._advance.seconds, self._advance.around_seconds)

    def _may_score(self) -> bool:
        advance = self._advance
        spent = advance.probing_seconds + advance.probe_seconds
        return self._regime.seconds is None or spent <= _PROBING_SHARE * (advance.seconds + advance.probe_seconds)

    def _score(self, most: int | None = None) -> float:
        """Return the loss on held-out samples, of all or of the first batches with at least so many."""
        losses, sizes = [], []
        with torch.no_grad():
            for batch, size in self._data.held_out():
                losses.append(size * float(self._objective(batch, deployed=True)))
                sizes.append(size)
                if most is not None and sum(sizes) >= most:
                    break
        return sum(losses) / sum(sizes)

    def _probe(self) -> float:
        """Return the loss on what is scored on the way, and note how long it takes."""
        began = self._clock()
        loss = self._score(self._most_probed)
        self._advance.probe_seconds = self._clock() - began
        return loss

    def _begin(self) -> None:
        """Score the start."""
        advance, began = self._advance, self._clock()
        advance.start_loss = advance.best_loss = self._score()
        _require_finite(advance.start_loss)
        advance.probe_start = advance.start_loss if self._most_probed is None else self._probe()
        advance.probe_best = advance.probe_start
        advance.around_seconds = 2 * (self._clock() - began)

    def _judge(self) -> None:
        """Score what the last update left, and note whether it is the best so far, or the rate too high."""
        advance, regime, loss = self._advance, self._regime, self._probe()
        advance.seconds += advance.probe_seconds
        advance.probing_seconds += advance.probe_seconds
        advance.scored_step = advance.step
        if loss < advance.probe_best:
            advance.probe_best, advance.best_step, advance.worse = loss, advance.step, 0
            self._best = self._weights.copy_leaves()
        elif self._progress(advance.step) > regime.warm_up:
            # A loss that is no number is worse, too.
            worse_than_start = not loss <= advance.probe_start
            advance.too_fast = regime.slows_down and worse_than_start and advance.slowed < _MOST_SLOWED
            advance.worse += not advance.too_fast

    def _gained(self) -> bool:
        """Return whether the best state is better than the start on all that is held out."""
        advance = self._advance
        loss = advance.probe_best if self._most_probed is None else self._score()
        if not loss < advance.start_loss:
            advance.best_step = 0
            return False
        advance.best_loss = loss
        return True

    def _slow_down(self) -> None:
        """Go back to the best state. What the optimizer has gathered since belongs to worse ones, so it starts anew."""
        self._weights.load_leaves(self._best)
        self._optimizer.state.clear()
        self._advance.slowed += 1
        self._advance.worse, self._advance.too_fast = 0, False

    def _save(self) -> None:
        tensors = {f"leaf.{name}": leaf for name, leaf in self._weights.leaves.items()}
        tensors |= {f"best.{name}": leaf for name, leaf in self._best.items()}
        for name, leaf in self._weights.leaves.items():
            tensors |= {f"adam.{key}.{name}": value for key, value in self._optimizer.state.get(leaf, {}).items()}
        self._checkpoint.save(tensors, asdict(self._advance))

    def _resume(self) -> bool:
        found = self._checkpoint.load()
        if found is None:
            return False
        tensors, facts = found
        leaves = self._weights.leaves
        if {f"leaf.{name}" for name in leaves} != {name for name in tensors if name.startswith("leaf.")}:
            return False
        self._weights.load_leaves({name: tensors[f"leaf.{name}"] for name in leaves})
        self._best = {name: tensors[f"best.{name}"].to(leaf.device) for name, leaf in leaves.items()}
        for name, leaf in leaves.items():
            state: dict[str, Any] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"adam.{key}.{name}" in tensors:
                    state[key] = tensors[f"adam.{key}.{name}"].to("cpu" if key == "step" else leaf.device)
            if state:
                self._optimizer.state[leaf] = state
        self._advance = Advance(**facts)  # type: ignore[arg-type]
        return True


def _require_finite(loss: float) -> None:
    if not torch.isfinite(torch.tensor(loss)):
        raise StepError(
            f"the loss on held-out data is {loss} before any training",
            expected="finite outputs of the model and of its source on the calibration data",
            why="Nothing can be learned from such a loss.",
            fix="Check the data, and the steps before this one.",
        )
