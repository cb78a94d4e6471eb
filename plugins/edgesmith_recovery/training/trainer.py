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
# With a time limit, scores on the way may take so much of it; more would be a training that only looks at itself.
_SCORING_SHARE = 0.2
# Rates that suit a badly damaged model and one that is nearly right lie two powers of ten apart.
_SLOWER = 10.0

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

    def held_out(self) -> Iterator[ItemOut]:
        """Yield the batches to decide by."""
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

    def progress(self, step: float, seconds: float) -> float:
        """Return the share of the training that is done, by whichever limit is nearer.

        Args:
            step: Updates so far.
            seconds: Time that it takes to be done now, the last score included.
        """
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / self.seconds if self.seconds else 0.0
        return min(max(by_steps, by_time), 1.0)


@dataclass(slots=True)
class Advance:
    """How far a training has come; all that a resumed one must know besides tensors."""

    step: int = 0
    seconds: float = 0.0
    start_loss: float = 0.0
    best_loss: float = 0.0
    best_step: int = 0
    scored_step: int = 0
    scores: int = 0
    score_seconds: float = 0.0
    """Time of the latest score."""
    all_score_seconds: float = 0.0
    worse: int = 0
    """Scores in a row that are no better than the best."""
    too_fast: bool = False
    """Whether the latest score asks for a lower rate."""
    slowed: int = 0
    """How often the rate was lowered."""

    @property
    def needed(self) -> float:
        """Seconds that it takes to be done now: those that have passed, and those of a last score."""
        return self.seconds + self.score_seconds


class Trainer(Generic[Key, Item]):
    """Trains until the budget is used up or scores no longer improve, and ends with the best state that was scored.

    The state at the start is one of them, so the held-out score is never worse afterwards.

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
        if not self._resume():
            self._advance.start_loss = self._advance.best_loss = self._timed_score()
            self._best = self._weights.copy_leaves()
            _require_finite(self._advance.start_loss)
        for _ in progress.track(self._percents(), description, total=100):
            pass
        if self._advance.scored_step != self._advance.step:
            self._judge()
        self._weights.load_leaves(self._best)
        return self._advance

    def _percents(self) -> Iterator[int]:
        """Train, and yield each time another hundredth is done."""
        advance, regime, shown = self._advance, self._regime, 0
        done = regime.progress(advance.step, advance.needed)
        while done < 1 and advance.worse < regime.patience:
            began = self._clock()
            self._update()
            advance.seconds += self._clock() - began
            done = regime.progress(advance.step, advance.needed)
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
        progress = regime.progress(self._advance.step + 0.5, self._advance.needed)
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

    def _may_score(self) -> bool:
        advance = self._advance
        spent = advance.all_score_seconds + advance.score_seconds
        return self._regime.seconds is None or spent <= _SCORING_SHARE * (advance.seconds + advance.score_seconds)

    def _timed_score(self) -> float:
        began = self._clock()
        loss = self._score()
        self._advance.score_seconds = self._clock() - began
        self._advance.all_score_seconds += self._advance.score_seconds
        self._advance.seconds += self._advance.score_seconds
        return loss

    def _score(self) -> float:
        with torch.no_grad():
            losses = [float(self._objective(batch, deployed=True)) for batch in self._data.held_out()]
        return sum(losses) / len(losses)

    def _judge(self) -> None:
        advance, loss = self._advance, self._timed_score()
        advance.scored_step = advance.step
        if loss < advance.best_loss:
            advance.best_loss, advance.best_step, advance.worse = loss, advance.step, 0
            self._best = self._weights.copy_leaves()
        elif self._regime.progress(advance.step, advance.needed) > self._regime.warm_up:
            advance.worse += 1
            advance.too_fast = self._regime.slows_down and not loss <= advance.start_loss

    def _slow_down(self) -> None:
        """Go back to the best state. What the optimizer has gathered since belongs to worse ones, so it starts anew."""
        self._weights.load_leaves(self._best)
        self._optimizer.state.clear()
        self._advance.slowed += 1
        self._advance.too_fast = False

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
