"""Training against the source: what changes, what stays bit for bit, and what the result promises."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.recovery.recovery_models import (
    array,
    context_for,
    perceptron,
    recover,
    samples,
    sparse,
    tokens,
    two_of_four,
    weights_of,
    with_weights,
)

from edgesmith.errors import DataError, StepError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.split import split_samples
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Notes
from edgesmith.model import Model
from edgesmith.progress import SilentProgress
from edgesmith.protection import PROTECTION_ASSET, ProtectedAxis, Protection
from edgesmith_calibration.sources import ArraySource, Batch
from edgesmith_recovery.finding.pairs import block_pairs
from edgesmith_recovery.finding.weights import find_weights, trained_count
from edgesmith_recovery.options.recover import RecoverOptions
from edgesmith_recovery.recover import Recover
from edgesmith_recovery.training.checkpoint import Checkpoint
from edgesmith_recovery.training.data import SampleBatches
from edgesmith_recovery.training.distillation import Distillation, make_goal
from edgesmith_recovery.training.trainer import Regime, Trainer
from edgesmith_recovery.training.weights import LowRank, TrainedWeights, write_weights

QUICK = {"epochs": 4, "batch_size": 8, "learning_rate": 1e-2, "warm_up": 0.0}
KEEPING = [
    {"parameters": "all", "weight_decay": 0.1},
    {"parameters": "low-rank", "adapter": "mask-lora", "rank": 4},
    {"parameters": "low-rank", "adapter": "scale-lora", "rank": 4},
    {"parameters": "low-rank", "adapter": "lora-prune", "rank": 4},
]


def output_gap(model: Model, source: Model, data: dict[str, np.ndarray]) -> float:
    found, wanted = (ReferenceSession(each.ir).run(data) for each in (model, source))
    return float(sum(np.square(found[name] - wanted[name]).sum() for name in wanted))


def trained(model: Model, options: RecoverOptions) -> tuple[TorchGraph, TrainedWeights]:
    graph = TorchGraph(model.ir)
    weights = find_weights(model.graph, find_structure(model.ir), options, None, Notes())
    low_rank = LowRank(options.adapter, options.rank, options.alpha / options.rank)
    return graph, TrainedWeights(graph, weights, low_rank if options.parameters == "low-rank" else None)


@pytest.mark.parametrize("options", [*KEEPING, {"parameters": "biases-and-norms"}])
def test_recovery_brings_the_outputs_closer_on_data_it_never_saw(options: dict) -> None:
    source, fresh = perceptron(), samples(200, seed=9)
    damaged = sparse(source)
    context = context_for(source, samples(256), outputs="mse", epochs=8, learning_rate=3e-3, **options)
    result = recover(damaged, context)
    assert output_gap(result, source, fresh) < 0.9 * output_gap(damaged, source, fresh)
    assert "fell from" in context.notes.remarks[-1]


@pytest.mark.parametrize("options", KEEPING)
def test_zeros_are_the_same_zeros_afterwards(options: dict) -> None:
    source = perceptron()
    damaged = sparse(source)
    result = recover(damaged, context_for(source, samples(), **QUICK, **options))
    for name in ("w1", "w2", "w3"):
        before, after = array(damaged, name), array(result, name)
        assert np.array_equal(before == 0, after == 0) and not np.array_equal(before, after)


def test_plain_lora_fills_zeros_but_no_protected_channels(tmp_path: Path) -> None:
    source = perceptron()
    damaged = sparse(source)
    Protection(weights={"w2": {1: ProtectedAxis(length=24, kept=(3, 7))}}).save(tmp_path / "kept.json")
    options = {**QUICK, "parameters": "low-rank", "adapter": "lora", "protect": tmp_path / "kept.json"}
    result = recover(damaged, context_for(source, samples(), **options))
    assert (np.delete(array(result, "w2"), (3, 7), axis=1) == 0).mean() < 0.01
    assert array(result, "w2")[:, [3, 7]].tobytes() == array(damaged, "w2")[:, [3, 7]].tobytes()
    # Only matrices have such an update.
    assert RecoverOptions(adapter="lora").fills_zeros is False
    assert RecoverOptions(adapter="lora", parameters="low-rank", how="closed-form").fills_zeros is False


@pytest.mark.parametrize("options", KEEPING)
def test_two_of_four_stay_two_of_four(options: dict) -> None:
    source = perceptron()
    damaged = two_of_four(source)
    result = recover(damaged, context_for(source, samples(), **QUICK, **options))
    for name in ("w1", "w2", "w3"):
        assert ((array(result, name).reshape(-1, 4) != 0).sum(axis=1) == 2).all()


def test_negative_zeros_stay_negative() -> None:
    source = perceptron()
    damaged = with_weights(source, lambda name, a: a * (np.abs(a) > 0.2) if a.ndim == 2 else None)
    assert (np.signbit(array(damaged, "w2")) & (array(damaged, "w2") == 0)).any()
    result = recover(damaged, context_for(source, samples(), **QUICK, weight_decay=0.5))
    zero = array(damaged, "w2") == 0
    assert np.array_equal(np.signbit(array(result, "w2"))[zero], np.signbit(array(damaged, "w2"))[zero])


@pytest.mark.parametrize("adapter", ["mask-lora", "scale-lora", "lora-prune", "lora"])
def test_the_merged_graph_computes_what_the_adapters_did(adapter: str) -> None:
    damaged = sparse(perceptron())
    options = RecoverOptions(parameters="low-rank", adapter=adapter, rank=4, keep_zeros=adapter != "lora")
    graph, weights = trained(damaged, options)
    with torch.no_grad():
        for leaf in weights.leaves.values():
            leaf.add_(0.1 * torch.randn_like(leaf))
    x = torch.from_numpy(samples()["x"])
    called = torch.func.functional_call(graph, weights.effective(deployed=True), ({"x": x},))["y"]
    merged = TorchGraph(write_weights(damaged.ir, weights.merged()))({"x": x})["y"].detach()
    assert float((called - merged).detach().abs().max()) <= 1e-5
    with torch.no_grad():
        training = torch.func.functional_call(graph, weights.effective(), ({"x": x},))["y"]
    # lora-prune trains another network than it deploys; that is the price that the options name.
    assert (float((training - merged).abs().max()) <= 1e-5) is (adapter != "lora-prune")


@pytest.mark.parametrize("adapter", ["mask-lora", "scale-lora"])
def test_before_the_first_step_nothing_has_changed(adapter: str) -> None:
    damaged = sparse(perceptron())
    _, weights = trained(damaged, RecoverOptions(parameters="low-rank", adapter=adapter))
    for name, tensor in weights.merged().items():
        assert np.array_equal(tensor.numpy(), array(damaged, name))


def test_the_number_of_trained_parameters_is_that_of_the_formula() -> None:
    damaged, rank, width = sparse(perceptron()), 3, 24
    biases = 2 * width + 4
    _, low_rank = trained(damaged, RecoverOptions(parameters="low-rank", rank=rank))
    factors = rank * (width + 16) + rank * (width + width) + rank * (4 + width)
    assert sum(leaf.numel() for leaf in low_rank.leaves.values()) == factors + biases
    _, plain = trained(damaged, RecoverOptions(parameters="biases-and-norms"))
    assert sum(leaf.numel() for leaf in plain.leaves.values()) == biases
    found = find_weights(damaged.graph, find_structure(damaged.ir), RecoverOptions(), None, Notes())
    kept = sum(int((array(damaged, name) != 0).sum()) for name in ("w1", "w2", "w3"))
    assert trained_count(damaged.graph, found) == kept + biases


def test_an_encoder_trains_what_the_structure_names(tiny_bert: Model) -> None:
    found = find_weights(tiny_bert.graph, find_structure(tiny_bert.ir), RecoverOptions(), None, Notes())
    shapes = {each.name: tiny_bert.graph.initializers[each.name].const_value.shape.numpy() for each in found}
    # Three tables and their norm; per block 4 projections, 2 MLP products, 2 norms; pooler and classifier.
    block = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    total = (100 + 64 + 2) * 32 + 2 * 32 + 2 * block + 32 * 32 + 32 + 3 * 32 + 3
    frozen = sum(0 if each.frozen is None else int(each.frozen.sum()) for each in found)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == total
    assert trained_count(tiny_bert.graph, found) == total - frozen
    assert len({each.name for each in found}) == len(found)


@settings(max_examples=8, deadline=None)
@given(axis=st.integers(0, 1), data=st.data())
def test_protected_channels_are_bit_identical_after_a_hundred_steps_with_decay(axis: int, data: st.DataObject) -> None:
    source = perceptron()
    damaged = sparse(source, 0.3)
    places = data.draw(st.sets(st.integers(0, 15), min_size=1, max_size=8).map(sorted))
    length = array(damaged, "w1").shape[axis]
    kept = ProtectedAxis(length=length, kept=tuple(places))
    protection = Protection(weights={"w1": {axis: kept}})
    options = RecoverOptions(weight_decay=0.5)
    graph = TorchGraph(damaged.ir)
    weights = TrainedWeights(
        graph, find_weights(damaged.graph, find_structure(damaged.ir), options, protection, Notes()), None
    )
    x = torch.from_numpy(samples()["x"])
    optimizer = torch.optim.AdamW(list(weights.leaves.values()), lr=1e-2, weight_decay=0.5)
    for _ in range(100):
        graph({"x": x})["y"].square().mean().backward()
        optimizer.step()
        weights.keep_frozen()
        optimizer.zero_grad()
    result = damaged.with_ir(write_weights(damaged.ir, weights.merged()))
    before, after = (np.moveaxis(array(each, "w1"), axis, 0) for each in (damaged, result))
    assert before[places].tobytes() == after[places].tobytes()
    others = [place for place in range(length) if place not in places]
    assert before[others].tobytes() != after[others].tobytes()


def test_a_protection_file_is_obeyed_and_one_of_another_model_refused(tmp_path: Path) -> None:
    source = perceptron()
    damaged = sparse(source)
    for length, places in ((24, (0, 5)), (30, (0, 29))):
        kept = ProtectedAxis(length=length, kept=places)
        Protection(weights={"b1": {0: kept}, "w1": {0: kept}}).save(tmp_path / f"{length}.json")
    context = context_for(source, samples(), protect=tmp_path / "24.json", **QUICK)
    result = recover(damaged, context)
    for name in ("w1", "b1"):
        assert array(result, name)[[0, 5]].tobytes() == array(damaged, name)[[0, 5]].tobytes()
    context = replace(context, options=RecoverOptions(protect=tmp_path / "30.json"))
    verdict = Recover().check(damaged, context)
    assert verdict.status == "refuse" and "30 places" in verdict.reason


def test_what_an_analysis_left_in_the_model_is_obeyed() -> None:
    source = perceptron()
    found = Protection(weights={"b1": {0: ProtectedAxis(length=24, kept=(0, 5))}})
    damaged = sparse(source)
    analysed = replace(damaged, assets={PROTECTION_ASSET: found.model_dump_json().encode()})
    context = context_for(source, samples(), protect="units", **QUICK)
    result = recover(analysed, context)
    assert array(result, "b1")[[0, 5]].tobytes() == array(damaged, "b1")[[0, 5]].tobytes()
    assert array(result, "b1").tobytes() != array(damaged, "b1").tobytes()
    verdict = Recover().check(damaged, context)
    assert verdict.status == "refuse" and "analyse-units" in verdict.reason


def test_nodes_that_are_not_selected_keep_their_weights() -> None:
    source = perceptron()
    damaged = sparse(source)
    context = context_for(source, samples(), skip=("node_m2",), **QUICK)
    result = recover(damaged, context)
    same = {name for name, data in weights_of(damaged).items() if weights_of(result)[name] == data}
    assert same == {"w2", "b2"} and "node_m2" in context.notes.skipped


def test_a_tied_table_stays_one_tensor(tiny_gpt2: Model) -> None:
    damaged = sparse(tiny_gpt2)
    context = context_for(tiny_gpt2, tokens(tiny_gpt2, 8), steps=6, batch_size=4, learning_rate=1e-3)
    result = recover(damaged, context)
    (head,) = find_structure(damaged.ir).heads
    assert head.tied
    assert list(result.graph.initializers) == list(damaged.graph.initializers)
    table = next(e.table for e in find_structure(result.ir).embeddings if e.kind == "token")
    assert find_structure(result.ir).heads[0].tied and not np.array_equal(array(result, table), array(damaged, table))


def test_initializers_that_share_a_tensor_share_the_new_one() -> None:
    source = perceptron(width=16)
    shared = source.graph.initializers["w1"].const_value
    source.graph.initializers["w2"].const_value = shared
    damaged = sparse(source)
    assert damaged.graph.initializers["w1"].const_value is damaged.graph.initializers["w2"].const_value
    result = recover(damaged, context_for(source, samples(), **QUICK))
    assert result.graph.initializers["w1"].const_value is result.graph.initializers["w2"].const_value
    assert not np.array_equal(array(result, "w1"), array(damaged, "w1"))


def test_half_precision_weights_learn_in_float_and_keep_their_type() -> None:
    source = perceptron(dtype=np.float16)
    damaged = sparse(source)
    result = recover(damaged, context_for(source, samples(dtype=np.float16), **QUICK))
    for name in ("w1", "w2", "w3"):
        assert array(result, name).dtype == np.float16
        assert ((array(result, name) == 0) >= (array(damaged, name) == 0)).all()
    data = samples(dtype=np.float16)
    assert output_gap(result, source, data) < output_gap(damaged, source, data)


def test_the_input_is_not_edited_and_the_seed_decides_everything() -> None:
    source = perceptron()
    damaged = sparse(source)
    digests = damaged.digest(), source.digest()
    first, second = (recover(damaged, context_for(source, samples(), **QUICK)) for _ in range(2))
    assert (damaged.digest(), source.digest()) == digests
    assert weights_of(first) == weights_of(second)
    other = recover(damaged, replace(context_for(source, samples(), **QUICK), seed=1))
    assert weights_of(first) != weights_of(other)


def test_a_loss_that_is_not_finite_is_refused_in_four_sentences() -> None:
    source = with_weights(perceptron(), lambda name, a: np.full_like(a, 1e30) if name in ("w1", "w3") else None)
    with pytest.raises(StepError, match="before any training") as caught:
        recover(sparse(perceptron()), context_for(source, samples(16), steps=1))
    assert all(part[0].isupper() and part.endswith(".") for part in (caught.value.why, caught.value.fix))


def test_a_rate_that_ruins_everything_leaves_the_model_as_it_was() -> None:
    source = perceptron()
    damaged = sparse(source, 0.05)
    context = context_for(source, samples(), epochs=2, learning_rate=50.0, warm_up=0.0, clip=1e9)
    result = recover(damaged, context)
    assert weights_of(result) == weights_of(damaged)
    assert "so all stay as they were" in context.notes.remarks[-1]


def test_training_stops_early_where_nothing_improves() -> None:
    source = perceptron()
    context = context_for(
        source, samples(), steps=400, learning_rate=20.0, warm_up=0.0, decay="none", evaluations=100, patience=3
    )
    recover(sparse(source, 0.05), context)
    # A score every 4 steps, and three in a row are enough.
    assert "for 12 steps" in context.notes.remarks[-1]


def test_labels_alone_teach_where_there_is_no_source() -> None:
    model, data = perceptron(), samples(96)
    labels = (data["x"][:, 0] > 0).astype(np.int64)
    context = context_for(None, data, labels=labels, **QUICK)
    result = recover(model, context)
    fresh = samples(200, seed=5)
    wanted = fresh["x"][:, 0] > 0

    def hits(each: Model) -> int:
        return int((ReferenceSession(each.ir).run(fresh)["y"].argmax(1) == wanted).sum())

    assert hits(result) > hits(model) + 20


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.full(24, 4), "from 4 to 4 for the output 'y' of shape"),
        (np.full(24, -1), "from -1 to -1"),
        (np.zeros((24, 3), np.int64), r"labels of shape \[\d+, 3\]"),
    ],
)
def test_labels_that_are_no_classes_of_the_output_are_refused(labels: np.ndarray, words: str) -> None:
    source = perceptron()
    with pytest.raises(DataError, match=words) as caught:
        recover(sparse(source), context_for(source, samples(24), labels=labels, **QUICK))
    assert "labels_weight" in caught.value.fix
    without = context_for(source, samples(24), labels=labels, labels_weight=0.0, **QUICK)
    recover(sparse(source), without)
    assert "Trained" in without.notes.remarks[-1]


def fixed_batch(model: Model, size: int) -> Model:
    """Return a copy that takes so many samples at once."""
    copy = model.clone()
    copy.graph.inputs[0].shape = ir.Shape([size, 16])
    return copy


@pytest.mark.parametrize("how", ["distill", "closed-form"])
@pytest.mark.parametrize(("count", "most"), [(2, None), (4, None), (7, None), (20, 7)])
def test_a_graph_with_a_fixed_batch_needs_two_batches(how: str, count: int, most: int | None) -> None:
    source = fixed_batch(perceptron(), 4)
    context = context_for(source, samples(count), how=how, samples=most)
    verdict = Recover().check(sparse(source), context)
    assert verdict.status == "refuse" and "needs 8 calibration samples" in verdict.reason
    with pytest.raises(StepError) as caught:
        Recover().apply(sparse(source), context)
    assert all(part[0].isupper() and part.endswith(".") for part in (caught.value.why, caught.value.fix))


@pytest.mark.parametrize("how", ["distill", "closed-form"])
@pytest.mark.parametrize("count", [8, 11])
def test_two_batches_are_enough_and_what_fills_none_is_left_out(how: str, count: int) -> None:
    source = fixed_batch(perceptron(), 4)
    split = split_samples(count, 0.1, 4, seed=0)
    assert (split.training.size, split.held_out.size) == (4, 4)
    context = context_for(source, samples(count), how=how, steps=2)
    assert "held-out" in (recover(sparse(source), context), context.notes.remarks[-1])[1]


@settings(max_examples=100, deadline=None)
@given(count=st.integers(2, 700), batch=st.integers(1, 40), share=st.floats(0.01, 0.5), seed=st.integers(0, 9))
def test_a_split_has_whole_batches_on_either_side(count: int, batch: int, share: float, seed: int) -> None:
    count = max(count, 2 * batch)
    split = split_samples(count, share, batch, seed)
    for part in (split.training, split.held_out):
        assert part.size >= batch and part.size % batch == 0 and (np.diff(part) > 0).all()
    assert not set(split.training) & set(split.held_out) and count - split.training.size - split.held_out.size < batch


def test_applying_builds_each_torch_graph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    start = TorchGraph.__init__

    def watched(self, *arguments, **options):
        built.append(self)
        start(self, *arguments, **options)

    source = perceptron()
    damaged, context = sparse(source), context_for(source, samples(16), steps=1)
    monkeypatch.setattr(TorchGraph, "__init__", watched)
    Recover().apply(damaged, context)
    assert len(built) == 2


def test_padded_positions_neither_count_nor_run(tiny_bert: Model) -> None:
    damaged, data = sparse(tiny_bert), tokens(tiny_bert, 12)
    noisy = {name: values.copy() for name, values in data.items()}
    hidden = data["attention_mask"] == 0
    noisy["input_ids"][hidden] = 99
    options = {"steps": 4, "batch_size": 4, "blocks": "all", "learning_rate": 1e-3}
    first = recover(damaged, context_for(tiny_bert, data, **options))
    second = recover(damaged, context_for(tiny_bert, noisy, **options))
    for name, value in first.graph.initializers.items():
        if value.const_value.dtype == ir.DataType.FLOAT:
            # What stands at padded places reaches nothing but sums that a mask sets to zero before adding.
            np.testing.assert_allclose(value.const_value.numpy(), array(second, name), atol=2e-6)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_mixed_precision_gives_nearly_the_same_loss_and_float_gradients(
    name: str, request: pytest.FixtureRequest
) -> None:
    # bfloat16 on a CPU runs the same code as on a GPU.
    source: Model = request.getfixturevalue(name)
    structure = find_structure(source.ir)
    damaged = sparse(source, 0.8)
    graph, weights = trained(damaged, RecoverOptions(parameters="low-rank"))
    pairs = block_pairs(structure, structure, damaged.graph, damaged.graph)
    goal = make_goal(damaged.graph, structure, pairs, RecoverOptions(), has_labels=False)
    batch = Batch(tokens(source, 8))
    losses = [Distillation(graph, TorchGraph(source.ir), weights, goal, mixed=mixed)(batch) for mixed in (False, True)]
    losses[1].backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in weights.leaves.values() if leaf.grad is not None)
    # Eight bits of mantissa leave each of some hundred values with an error of 0.4 %; the loss is a difference of them.
    assert float(losses[1].detach()) == pytest.approx(float(losses[0].detach()), rel=0.25)


class Clock:
    """So many seconds pass each time somebody looks."""

    def __init__(self, tick: float = 1.0) -> None:
        self.now, self._tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self._tick
        return self.now


class Numbers:
    """Batches are numbers; half of them decide."""

    count = 5

    def order(self, epoch: int) -> list[int]:
        return [int(i) for i in np.random.default_rng(epoch).permutation(5)]

    def load(self, key: int) -> torch.Tensor:
        return torch.from_numpy(samples(8, seed=key)["x"])

    def held_out(self):
        yield torch.from_numpy(samples(8, seed=100)["x"]), 8


def make_trainer(directory: Path | None, regime: Regime, clock: Clock | None = None) -> tuple[Trainer, TrainedWeights]:
    graph, weights = trained(sparse(perceptron()), RecoverOptions())
    teacher = TorchGraph(perceptron().ir)

    def objective(batch: torch.Tensor, *, deployed: bool = False) -> torch.Tensor:
        found = torch.func.functional_call(graph, weights.effective(deployed=deployed), ({"x": batch},))["y"]
        return (found - teacher({"x": batch})["y"].detach()).square().mean()

    keeping = {"clock": clock} if clock else {}
    return Trainer(weights, objective, Numbers(), regime, checkpoint=Checkpoint(directory), **keeping), weights


class Killed(SilentProgress):
    """Ends the process, as far as the training can tell, after so many hundredths."""

    def __init__(self, after: int) -> None:
        self._after = after

    def track(self, items, description, total=None):
        for item in items:
            yield item
            if item >= self._after:
                raise KeyboardInterrupt


STEADY = Regime(steps=30, seconds=None, learning_rate=1e-2, weight_decay=0.1, evaluations=7, checkpoint_steps=4)
# The first score, behind 16 hundredths, is worse than the start; the next update lowers the rate.
SLOWING = replace(STEADY, learning_rate=1.0, slows_down=True, checkpoint_steps=1)
TIMED = replace(SLOWING, steps=None, seconds=40.0)


@pytest.mark.parametrize(
    ("regime", "after"),
    [(STEADY, 3), (STEADY, 37), (STEADY, 80), (SLOWING, 16), (SLOWING, 20), (SLOWING, 60), (TIMED, 50)],
)
def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path, regime: Regime, after: int) -> None:
    whole, expected = make_trainer(None, regime, Clock())
    advance = whole.run(SilentProgress(), "")
    trainer, _ = make_trainer(tmp_path / "state", regime, Clock())
    with pytest.raises(KeyboardInterrupt):
        trainer.run(Killed(after), "")
    again, found = make_trainer(tmp_path / "state", regime, Clock())
    resumed = again.run(SilentProgress(), "")
    assert {name: leaf.numpy().tobytes() for name, leaf in found.merged().items()} == {
        name: leaf.numpy().tobytes() for name, leaf in expected.merged().items()
    }
    assert resumed == advance and bool(advance.slowed) is regime.slows_down


def test_a_rate_that_is_too_high_comes_down_until_something_is_gained() -> None:
    regime = Regime(steps=40, seconds=None, learning_rate=10.0)
    kept, _ = make_trainer(None, regime)
    assert kept.run(SilentProgress(), "").best_step == 0 and kept.learning_rate == 10.0
    trainer, _ = make_trainer(None, replace(regime, slows_down=True))
    advance = trainer.run(SilentProgress(), "")
    assert advance.best_loss < 0.9 * advance.start_loss and trainer.learning_rate <= 0.1


def test_going_back_forgets_what_the_optimizer_saw() -> None:
    trainer, weights = make_trainer(None, Regime(steps=1, seconds=None, learning_rate=10.0, slows_down=True))
    before = weights.copy_leaves()
    trainer.run(SilentProgress(), "")
    assert trainer._advance.too_fast and trainer._optimizer.state
    trainer._slow_down()
    assert not trainer._optimizer.state and not trainer._advance.too_fast
    assert all(torch.equal(leaf, before[name]) for name, leaf in weights.leaves.items())


def test_a_rate_that_nobody_chose_suits_a_model_that_is_nearly_right() -> None:
    # Weights of the first layer are so small that 1e-4 for each is a change of a third.
    small = with_weights(perceptron(), lambda name, a: a * 1e-3 if name == "w1" else None)
    damaged, data = sparse(small, 0.05), {"x": 1e3 * samples(96)["x"]}
    chosen = context_for(small, data, outputs="mse", learning_rate=1e-4)
    assert weights_of(recover(damaged, chosen)) == weights_of(damaged)
    assert chosen.notes.remarks[-1].endswith("The learning rate was 0.0001.")
    context = context_for(small, data, outputs="mse")
    result, fresh = recover(damaged, context), {"x": 1e3 * samples(200, seed=9)["x"]}
    assert output_gap(result, small, fresh) < output_gap(damaged, small, fresh)
    assert "The learning rate came down to 1e-0" in context.notes.remarks[-1]


def scripted(losses: list[float], **options) -> Trainer:
    """Return a trainer that scores 1.0 at the start and these losses behind one update each, out of ten."""
    trainer, _ = make_trainer(None, Regime(steps=10, seconds=None, learning_rate=1.0, slows_down=True, **options))
    scores = iter([1.0, *losses])
    trainer._score = lambda most=None: next(scores)
    trainer._begin()
    trainer._best = trainer._weights.copy_leaves()
    for _ in losses:
        trainer._update()
        trainer._judge()
    return trainer


@pytest.mark.parametrize(
    ("losses", "warm_up", "too_fast"),
    [
        ([2.0], 0.0, True),
        ([float("nan")], 0.0, True),
        # The rate still rises.
        ([2.0], 0.1, False),
        ([2.0, 2.0], 0.1, True),
        # Worse than the best, but no worse than the start.
        ([0.5, 0.9], 0.0, False),
        ([1.0], 0.0, False),
    ],
)
def test_a_score_worse_than_the_start_is_that_of_a_rate_too_high(
    losses: list[float], warm_up: float, too_fast: bool
) -> None:
    advance = scripted(losses, warm_up=warm_up)._advance
    assert advance.too_fast is too_fast and advance.slowed == 0
    # Scores in the warm-up, better ones, and those that lower the rate do not count.
    assert advance.worse == (losses in ([0.5, 0.9], [1.0]))


def test_scores_that_lower_the_rate_do_not_end_the_training() -> None:
    # A score no better than the best counts, until the rate it was made at is given up.
    advance = scripted([0.5, 0.9, 2.0, 0.9], warm_up=0.0)._advance
    assert (advance.slowed, advance.worse, advance.best_step) == (1, 1, 1)
    # After four lower rates that bring nothing, every score counts.
    advance = scripted([2.0] * 7, warm_up=0.0)._advance
    assert (advance.slowed, advance.worse, advance.too_fast) == (4, 3, False)


def test_a_training_of_little_patience_lowers_the_rate_before_it_stops() -> None:
    trainer, _ = make_trainer(None, Regime(steps=40, seconds=None, learning_rate=10.0, slows_down=True, patience=1))
    assert trainer.run(SilentProgress(), "").best_step and trainer.learning_rate < 10.0


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 90), batch=st.integers(1, 12))
def test_held_out_samples_count_alike(count: int, batch: int) -> None:
    split = split_samples(count, 0.4, 1, seed=0)
    batches = SampleBatches(ArraySource(samples(count)), split, batch, None, 0)
    found = [(each.inputs["x"], size) for each, size in batches.held_out()]
    assert all(len(inputs) == size <= batch for inputs, size in found)
    chosen = samples(count)["x"][split.held_out]
    assert np.array_equal(np.concatenate([inputs for inputs, _ in found]), chosen)
    trainer, _ = make_trainer(None, STEADY)
    trainer._data, trainer._objective = batches, lambda each, deployed: each.inputs["x"].mean()
    assert trainer._score() == pytest.approx(chosen.mean(), abs=1e-6)


class DearScores:
    """Sixty-four samples to decide by, two at a time, each pair a second."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds, self.scored = clock, seconds, []

    count, order, load = Numbers.count, Numbers.order, Numbers.load

    def held_out(self):
        self.scored.append(0)
        for pair in range(32):
            self.scored[-1] += 2
            self.clock.now += self.seconds
            yield torch.from_numpy(samples(2, seed=100 + pair)["x"]), 2


@pytest.mark.parametrize("pair_seconds", [0.0, 1.0, 3.0])
def test_dear_scores_still_notice_a_rate_that_is_too_high(pair_seconds: float) -> None:
    clock = Clock(tick=0.0)
    regime = Regime(steps=None, seconds=600.0, learning_rate=10.0, slows_down=True)
    trainer, _ = make_trainer(None, regime, clock)
    update = trainer._update
    trainer._update = lambda: (setattr(clock, "now", clock.now + 4.0), update())
    data = trainer._data = DearScores(clock, pair_seconds)
    advance = trainer.run(SilentProgress(), "")
    # All at the start and at the end, and sixteen samples on the way.
    assert [data.scored[0], data.scored[-1]] == [64, 64] and set(data.scored[1:-1]) == {16}
    # The last update, or the score behind it, may end so much late.
    assert clock.now <= 600 + max(4, 8 * pair_seconds)
    assert advance.slowed > 1 and advance.best_loss == trainer._score() < 0.9 * advance.start_loss


def test_what_looked_better_on_the_way_must_be_so_on_all_that_is_held_out() -> None:
    trainer, weights = make_trainer(None, Regime(steps=None, seconds=50.0, learning_rate=1e-2), Clock())
    before = {name: leaf.clone() for name, leaf in weights.copy_leaves().items()}
    losses = iter([1.0 - 0.01 * number for number in range(30)])
    trainer._score = lambda most=None: 1.0 if most is None else next(losses)
    advance = trainer.run(SilentProgress(), "")
    assert advance.probe_best < advance.probe_start and advance.step > 10
    assert (advance.best_step, advance.best_loss) == (0, 1.0)
    assert all(torch.equal(leaf, before[name]) for name, leaf in weights.leaves.items())


def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path) -> None:
    regime = Regime(steps=10, seconds=None, learning_rate=1e-2, checkpoint_steps=2)
    make_trainer(tmp_path / "state", regime)[0].run(SilentProgress(), "")
    (file,) = (tmp_path / "state").iterdir()
    file.write_bytes(file.read_bytes()[:-50])
    assert Checkpoint(tmp_path / "state").load() is None
    assert make_trainer(tmp_path / "state", regime)[0].run(SilentProgress(), "").step == 10


def test_time_ends_a_training_and_the_rate_falls_to_its_end() -> None:
    regime = Regime(steps=1000, seconds=20.0, learning_rate=1e-2, evaluations=4)
    trainer, _ = make_trainer(None, regime, Clock())
    rates = []
    trainer._optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    advance = trainer.run(SilentProgress(), "")
    # The clock is looked at three times behind the first while the start is scored, and as much is kept for the end. Of
    # the 14 seconds between, three would be more than a fifth, the most that scores on the way may take. So twelve
    # updates are left, and a score of the last.
    assert advance.around_seconds == 6 and advance.seconds == 15
    assert advance.step == len(rates) == 12 and advance.probing_seconds == 3
    assert rates[-1] < 0.1 * max(rates) and max(rates) > 0.8e-2


def test_frozen_entries_do_not_count_in_the_length_of_a_gradient() -> None:
    damaged = sparse(perceptron())
    graph, weights = trained(damaged, RecoverOptions())
    zeros = {name: torch.from_numpy(array(damaged, name) == 0) for name in ("w1", "w2", "w3")}

    def objective(batch: torch.Tensor, *, deployed: bool = False) -> torch.Tensor:
        answers = torch.func.functional_call(graph, weights.effective(deployed=deployed), ({"x": batch},))["y"]
        # What pulls at zeros would take most of the gradient.
        return answers.square().sum() + 1e6 * sum(weights.leaves[name][places].sum() for name, places in zeros.items())

    trainer = Trainer(weights, objective, Numbers(), Regime(steps=1, seconds=None, learning_rate=1e-3, clip=0.5))
    lengths = []

    def measure(*_: object) -> None:
        for name, leaf in weights.leaves.items():
            lengths.append(leaf.grad[~zeros[name]].norm() if name in zeros else leaf.grad.norm())

    trainer._optimizer.register_step_pre_hook(measure)
    trainer.run(SilentProgress(), "")
    # torch divides by the norm plus 1e-6.
    assert len(lengths) == 6 and float(torch.stack(lengths).norm()) == pytest.approx(0.5, rel=1e-4)


def test_the_result_is_never_worse_than_the_start_on_what_decides() -> None:
    for rate in (1e-3, 1e-1, 10.0):
        trainer, _ = make_trainer(None, Regime(steps=12, seconds=None, learning_rate=rate))
        advance = trainer.run(SilentProgress(), "")
        assert advance.best_loss <= advance.start_loss
        assert trainer._score() == advance.best_loss


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"source": None}, "refuse", "source model of the run is not known"),
        ({"calibration": None}, "refuse", "--data"),
        ({"options": RecoverOptions(only=("nothing",))}, "refuse", "no node matches"),
        ({"options": RecoverOptions(only=("node_r1",))}, "skip", "no weight can be trained"),
        ({"options": RecoverOptions(how="blocks")}, "refuse", "set how to distill"),
        ({"options": RecoverOptions(how="blocks", select="paser")}, "refuse", "set select to all"),
        ({"options": RecoverOptions(protect=Path("/nowhere.json"))}, "refuse", "cannot be read"),
    ],
)
def test_check_says_what_is_missing(change: dict, status: str, words: str) -> None:
    source = perceptron()
    verdict = Recover().check(sparse(source), replace(context_for(source, samples()), **change))
    assert verdict.status == status and words in verdict.reason


def test_the_source_itself_needs_no_recovery() -> None:
    verdict = Recover().check(perceptron(), context_for(perceptron(), samples()))
    assert verdict.status == "skip" and "nothing to recover" in verdict.reason
    other = perceptron(width=8)
    other.graph.outputs[0].name = "z"
    verdict = Recover().check(other, context_for(perceptron(), samples()))
    assert verdict.status == "refuse" and "cannot be compared" in verdict.reason


def test_a_loss_without_any_part_is_refused() -> None:
    source = perceptron()
    context = context_for(source, samples(), outputs="none", labels_weight=0, labels=np.zeros(48, np.int64))
    verdict = Recover().check(sparse(source), context)
    assert verdict.status == "refuse" and "there is nothing to learn by: outputs are left out" in verdict.reason
