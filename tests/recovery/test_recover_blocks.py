"""Repair block by block and in closed form: errors that never rise, memory of one block, and what is left alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
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
from tests.small_graphs import context as plain
from tests.small_graphs import graph
from tests.small_graphs import node as made

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.split import split_samples
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Notes
from edgesmith.model import Model
from edgesmith.progress import SilentProgress
from edgesmith_recovery.finding.layers import find_layers
from edgesmith_recovery.finding.pairs import Pair, block_pairs
from edgesmith_recovery.finding.segments import cut
from edgesmith_recovery.finding.weights import find_weights
from edgesmith_recovery.options.recover import RecoverOptions
from edgesmith_recovery.reconstruction.distance import better_of
from edgesmith_recovery.recover import Recover
from edgesmith_recovery.training.trainer import Trainer
from edgesmith_tokens.merge_tokens import MergeTokens
from edgesmith_tokens.options.merging import MergeTokensOptions

MODELS = ("tiny_bert", "tiny_llama")
BLOCKS = {"how": "blocks", "steps": 4, "batch_size": 8, "learning_rate": 5e-4}


def gap(model: Model, source: Model, data: dict[str, np.ndarray], value: str) -> float:
    """Return the relative error of a value that both graphs have, where no padding is."""
    found, wanted = (ReferenceSession(each.ir, taps=[value]).run(data)[value] for each in (model, source))
    if "attention_mask" in data and found.ndim == 3:
        found, wanted = found[data["attention_mask"] != 0], wanted[data["attention_mask"] != 0]
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("name", MODELS)
def test_a_segment_computes_what_the_graph_does(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    data = tokens(model, 4)
    first, second = (block.output for block in find_structure(model.ir).blocks)
    whole = ReferenceSession(model.ir, taps=[first, second]).run(data)
    for start, end in ((None, first), (first, second)):
        part = cut(model.ir, start, end)
        session = ReferenceSession(part)
        feeds = {each: whole[each] if each == start else data[each] for each in session.input_names}
        np.testing.assert_allclose(session.run(feeds)[end], whole[end], atol=1e-6)
        assert len(part.graph) < len(model.graph)
    shared = set(cut(model.ir, first, second).graph.initializers) & set(cut(model.ir, None, first).graph.initializers)
    assert all(model.graph.initializers[each].const_value.size < 1000 for each in shared)


def test_blocks_share_the_time_also_of_a_run_that_goes_on(
    tiny_bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    start = Trainer.__init__

    def watched(self, weights, objective, data, regime, **options):
        given.append(regime.seconds)
        start(self, weights, objective, data, regime, **options)

    monkeypatch.setattr(Trainer, "__init__", watched)
    context = context_for(
        tiny_bert, tokens(tiny_bert, 8), place=tmp_path / "state", **BLOCKS | {"steps": 1, "minutes": 3}
    )
    with pytest.raises(KeyboardInterrupt):
        Recover().apply(sparse(tiny_bert), replace(context, progress=Killed()))
    assert given == [90.0]
    Recover().apply(sparse(tiny_bert), context)
    assert given == [90.0, 90.0]


def test_held_out_samples_of_a_block_count_alike(tiny_bert: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    start = Trainer.__init__

    def watched(self, weights, objective, data, regime, **options):
        sizes.append([size for _, size in data.held_out()])
        start(self, weights, objective, data, regime, **options)

    monkeypatch.setattr(Trainer, "__init__", watched)
    recover(sparse(tiny_bert), context_for(tiny_bert, tokens(tiny_bert, 25), **BLOCKS | {"steps": 1, "held_out": 0.4}))
    assert sizes == [[8, 2], [8, 2]]


def test_the_report_says_how_many_blocks_ended_at_a_lower_rate(tiny_bert: Model) -> None:
    # Steps of 0.1 for each weight ruin a block.
    options = {"how": "blocks", "steps": 6, "warm_up": 0.0}
    context = context_for(tiny_bert, tokens(tiny_bert, 16), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecoverOptions, "highest_rate", 0.1)
        recover(sparse(tiny_bert, 0.05), context)
    assert ", 2 of them at a lower rate than at first; " in context.notes.remarks[-1]
    chosen = context_for(tiny_bert, tokens(tiny_bert, 16), learning_rate=0.1, **options)
    recover(sparse(tiny_bert, 0.05), chosen)
    assert "lower rate" not in chosen.notes.remarks[-1]


@pytest.mark.parametrize(("name", "parameters"), [("tiny_bert", "low-rank"), ("tiny_llama", "all")])
def test_no_block_is_worse_than_before(name: str, parameters: str, request: pytest.FixtureRequest) -> None:
    source: Model = request.getfixturevalue(name)
    damaged, data, fresh = sparse(source, 0.8), tokens(source, 24), tokens(source, 12, seed=7)
    context = context_for(source, data, how="blocks", parameters=parameters, steps=8, learning_rate=1e-3)
    result = recover(damaged, context)
    for block in find_structure(source.ir).blocks:
        assert gap(result, source, fresh, block.output) < gap(damaged, source, fresh, block.output)
    assert "Trained 2 blocks" in context.notes.remarks[-1]
    for weight in find_weights(damaged.graph, find_structure(damaged.ir), RecoverOptions(), None, Notes()):
        if weight.frozen is not None:
            before, after = array(damaged, weight.name), array(result, weight.name)
            assert before[weight.frozen].tobytes() == after[weight.frozen].tobytes()


def without_training_of(index: int, result: Model, damaged: Model) -> Model:
    """Return the result with the weights of one block as they were before."""
    blocks = find_structure(damaged.ir).blocks
    names = cut(damaged.ir, blocks[index - 1].output if index else None, blocks[index].output).graph.initializers
    return with_weights(result, lambda name, _: array(damaged, name) if name in names else None)


@pytest.mark.parametrize(
    "rates",
    [
        {"learning_rate": 1e-3, "warm_up": 0.0},
        # Rises to a rate that ruins what the first steps gained.
        {"learning_rate": 1e-2, "warm_up": 0.95, "decay": "none"},
    ],
)
def test_errors_per_block_never_rise(tiny_llama: Model, rates: dict) -> None:
    damaged, data = sparse(tiny_llama), tokens(tiny_llama, 16)
    result = recover(damaged, context_for(tiny_llama, data, how="blocks", steps=6, batch_size=8, **rates))
    chosen = split_samples(16, 0.1, 1, seed=0).held_out
    decides = {name: values[chosen] for name, values in data.items()}
    for index, block in enumerate(find_structure(damaged.ir).blocks):
        before = without_training_of(index, result, damaged)
        was, is_now = (gap(each, tiny_llama, decides, block.output) for each in (before, result))
        assert is_now < was


class Killed(SilentProgress):
    """Stops the run before the second block."""

    def track(self, items, description, total=None):
        for number, item in enumerate(items):
            if description == "training blocks" and number == 1:
                raise KeyboardInterrupt
            yield item


def test_a_killed_run_goes_on_behind_the_last_finished_block(tmp_path: Path, tiny_llama: Model) -> None:
    damaged, data = sparse(tiny_llama), tokens(tiny_llama, 16)
    expected = weights_of(recover(damaged, context_for(tiny_llama, data, **BLOCKS)))
    context = context_for(tiny_llama, data, place=tmp_path / "state", **BLOCKS)
    with pytest.raises(KeyboardInterrupt):
        Recover().apply(damaged, replace(context, progress=Killed()))
    again = context_for(tiny_llama, data, place=tmp_path / "state", **BLOCKS)
    assert weights_of(recover(damaged, again)) == expected
    assert "Trained 1 blocks after 1 of an earlier run" in again.notes.remarks[-1]


def test_a_weight_of_several_blocks_stays(tiny_llama: Model) -> None:
    source = tiny_llama.clone()
    ups = [block.mlps[0].up.weight for block in find_structure(source.ir).blocks]
    for reader in list(source.graph.initializers[ups[1]].uses()):
        reader.node.replace_input_with(reader.idx, source.graph.initializers[ups[0]])
    damaged = sparse(source)
    context = context_for(source, tokens(source, 16), **BLOCKS)
    result = recover(damaged, context)
    assert array(result, ups[0]).tobytes() == array(damaged, ups[0]).tobytes()
    assert "1 weights are shared by several blocks" in context.notes.remarks[0]


@pytest.mark.parametrize("name", [*MODELS, "tiny_vit"])
@pytest.mark.parametrize("form", ["least-squares", "scale-and-shift"])
def test_closed_forms_bring_outputs_closer_and_keep_zeros(name: str, form: str, request: pytest.FixtureRequest) -> None:
    source: Model = request.getfixturevalue(name)
    damaged = sparse(source)
    if name == "tiny_vit":
        images = np.random.default_rng(0).normal(0, 1, (60, 3, 32, 32)).astype(np.float32)
        data, fresh = {"pixel_values": images[:40]}, {"pixel_values": images[40:]}
    else:
        data, fresh = tokens(source, 48), tokens(source, 40, seed=7)
    context = context_for(source, data, how="closed-form", closed_form=form)
    result = recover(damaged, context)
    output = source.graph.outputs[0].name
    assert gap(result, source, fresh, output) < gap(damaged, source, fresh, output)
    for initializer, value in damaged.graph.initializers.items():
        before, after = value.const_value.numpy(), array(result, initializer)
        if before.ndim == 2 and before.dtype == np.float32:
            assert not after[before == 0].any()


def test_closed_forms_keep_two_of_four() -> None:
    source = perceptron()
    damaged = two_of_four(source)
    result = recover(damaged, context_for(source, samples(200), how="closed-form"))
    for name in ("w1", "w2", "w3"):
        kept = array(result, name)
        assert ((kept.reshape(-1, 4) != 0).sum(axis=1) == 2).all()
        # Independent inputs cannot stand in for each other, so the first layer is as good as it can be.
        assert np.array_equal(kept, array(damaged, name)) is (name == "w1")


def test_a_layer_that_transposes_its_input_is_left_alone_in_closed_form() -> None:
    generator = np.random.default_rng(0)
    weights = {"w1": generator.normal(size=(16, 24)), "w2": generator.normal(size=(24, 4))}
    nodes = [
        made("Transpose", ["x"], "t", perm=[1, 0]),
        made("Gemm", ["t", "w1"], "h", transA=1),
        made("MatMul", ["h", "w2"], "y"),
    ]
    source = graph(nodes, {name: each.astype(np.float32) for name, each in weights.items()}, {"x": ["n", 16]})
    context = context_for(source, samples(100), how="closed-form")
    recover(sparse(source, 0.3), context)
    assert "transposes what it reads" in context.notes.skipped["node_h"]


def test_a_layer_whose_inputs_were_removed_gives_its_outputs_again() -> None:
    source = perceptron()
    damaged = source.clone()
    for name, axis in (("w1", 0), ("b1", 0), ("w2", 0)):
        value = damaged.graph.initializers[name]
        value.const_value = ir.tensor(np.take(value.const_value.numpy(), range(16), axis), name=name)
        value.shape = value.const_value.shape
    for value in [node.outputs[0] for node in damaged.graph][:2]:
        value.shape = None
    context = context_for(source, samples(300), how="closed-form", only=("node_m2",))
    result = recover(damaged, context)
    assert gap(result, source, samples(100, seed=4), "h2") < 0.6 * gap(damaged, source, samples(100, seed=4), "h2")
    same = {name for name in weights_of(damaged) if weights_of(result)[name] == weights_of(damaged)[name]}
    assert same == {"w1", "b1", "w3", "b3"}
    # The layer before has other outputs than its source, and says so.
    notes = Notes()
    weights = find_weights(damaged.graph, find_structure(damaged.ir), RecoverOptions(), None, Notes())
    find_layers(damaged.graph, find_structure(damaged.ir), find_structure(source.ir), weights, notes)
    assert "16 outputs and its source 24" in notes.skipped["node_h1"]


def test_little_data_ruins_nothing() -> None:
    source = perceptron()
    damaged = sparse(source, 0.2)
    result = recover(damaged, context_for(source, samples(6), how="closed-form", held_out=0.5))
    fresh = samples(300, seed=11)
    assert gap(result, source, fresh, "y") < 4 * gap(damaged, source, fresh, "y")


def drop_block(model: Model, index: int) -> Model:
    """Return a copy in which what reads the output of a block reads its input."""
    copy = model.clone()
    block = find_structure(copy.ir).blocks[index]
    values = {value.name: value for node in copy.graph for value in node.outputs}
    ir.convenience.replace_all_uses_with(values[block.output], values[block.input])
    ir.passes.common.RemoveUnusedNodesPass()(copy.ir)
    return copy


def test_a_repair_that_helps_nothing_is_undone_and_says_so() -> None:
    before, after = perceptron(0), perceptron(1)
    errors = {id(before.ir): 0.25, id(after.ir): 0.5}
    context = context_for(before, samples())
    kept = better_of(before.ir, after.ir, lambda one: errors[id(one)], "Solved 2 of 3 linear layers", context)
    for name, value in before.graph.initializers.items():
        np.testing.assert_array_equal(kept.graph.initializers[name].const_value.numpy(), value.const_value.numpy())
    (remark,) = context.notes.remarks
    assert "from 0.25 to 0.5, so this is undone and all layers stay as they were" in remark


@pytest.mark.parametrize(("removed", "compared"), [(0, "tail"), (1, "none")])
def test_blocks_that_are_left_learn_from_those_they_came_from(tiny_llama: Model, removed: int, compared: str) -> None:
    teacher = find_structure(tiny_llama.ir)
    damaged = drop_block(tiny_llama, removed)
    kept = teacher.blocks[1 - removed].output
    assert block_pairs(find_structure(damaged.ir), teacher, damaged.graph, tiny_llama.graph) == (Pair(kept, kept),)
    context = context_for(tiny_llama, tokens(tiny_llama, 16), steps=8, blocks=compared, learning_rate=1e-3)
    result = recover(damaged, context)
    assert "fell from" in context.notes.remarks[-1]
    output, fresh = tiny_llama.graph.outputs[0].name, tokens(tiny_llama, 40, seed=7)
    assert gap(result, tiny_llama, fresh, output) < gap(damaged, tiny_llama, fresh, output)


@pytest.mark.parametrize("rename", [lambda name: name, lambda name: f"other_{name}"])
def test_names_are_not_needed(tiny_bert: Model, rename: Callable[[str], str]) -> None:
    copy = tiny_bert.clone()
    for value in [value for node in copy.graph for value in node.outputs if not value.is_graph_output()]:
        value.name = rename(value.name)
    pairs = block_pairs(find_structure(copy.ir), find_structure(tiny_bert.ir), copy.graph, tiny_bert.graph)
    assert [pair.teacher for pair in pairs] == [block.output for block in find_structure(tiny_bert.ir).blocks]
    assert [pair.student for pair in pairs] == [rename(pair.teacher) for pair in pairs]


def test_a_stream_of_another_width_is_not_compared(tiny_bert: Model, tiny_vit: Model) -> None:
    wide = find_structure(tiny_vit.ir)
    narrow = replace(wide, streams=tuple(replace(stream, width=16) for stream in wide.streams))
    graphs, taught = (tiny_vit.graph, tiny_bert.graph), find_structure(tiny_bert.ir)
    assert block_pairs(narrow, taught, *graphs) == ()
    assert len(block_pairs(wide, taught, *graphs)) == 2


def test_blocks_with_fewer_tokens_learn_by_the_outputs_alone(tiny_vit: Model) -> None:
    merged = MergeTokens().apply(tiny_vit, plain(MergeTokensOptions(r=4)))
    merged = with_weights(merged, lambda _, weight: 0.8 * weight if weight.ndim == 2 else None)
    structure, source = find_structure(merged.ir), find_structure(tiny_vit.ir)
    pairs = block_pairs(structure, source, merged.graph, tiny_vit.graph)
    assert len(pairs) < len(structure.blocks)
    generator = np.random.default_rng(3)
    pixels, output = tiny_vit.graph.inputs[0], tiny_vit.graph.outputs[0].name
    data = {pixels.name: generator.normal(0, 1, (16, *pixels.shape[1:])).astype(np.float32)}
    context = context_for(tiny_vit, data, steps=8, learning_rate=1e-3)
    assert gap(recover(merged, context), tiny_vit, data, output) < gap(merged, tiny_vit, data, output)


def test_scaled_weights_get_their_scale_back() -> None:
    source = perceptron()
    damaged = with_weights(source, lambda name, a: 0.5 * a if name in ("w2", "b2") else None)
    context = context_for(source, samples(100), how="closed-form", closed_form="scale-and-shift", only=("node_m2",))
    np.testing.assert_allclose(array(recover(damaged, context), "w2"), array(source, "w2"), rtol=1e-4)
