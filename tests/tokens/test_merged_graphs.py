"""Vision transformers with merged tokens: each merge is the formula, and everything else goes on as it was."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small_graphs import context, run
from tests.tokens.aggregate_networks import half
from tests.tokens.aggregate_networks import images as patch_images
from tests.tokens.aggregate_networks import vision as patch_vit
from tests.tokens.merge_models import (
    accepted,
    before_softmax,
    images,
    merge,
    merged_value,
    pooling_vit,
    refusal,
    same,
    size_values,
    taps,
    vision,
    vit_with_registers,
)

from edgesmith.errors import StepError
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.graph.cost import count_cost
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.opset import raise_opset
from edgesmith.graph.structure import find_structure
from edgesmith.serialization import to_bytes
from edgesmith.testing.models import tiny_bert, tiny_cnn, tiny_gpt, tiny_vit
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.prune_structure import PruneStructure
from edgesmith_tokens.finding.vision import find_vision_streams
from edgesmith_tokens.merge_tokens import MergeTokens
from edgesmith_tokens.merging.formula import match
from edgesmith_tokens.merging.formula import merge as merge_formula
from edgesmith_tokens.options.merging import MergeTokensOptions
from edgesmith_tokens.tokens.reduction import obstacle_to_fewer

TOKENS, PROTECTED = 17, 1


@pytest.mark.parametrize("options", [{"r": 0}, {"counts": ()}, {"counts": (0, 0)}])
def test_no_merge_changes_no_bit(options):
    model = tiny_vit()
    settings_ = context(MergeTokensOptions(**options))
    assert MergeTokens().check(model, settings_).status == "skip"
    result = MergeTokens().apply(model, settings_)
    assert result.ir is not model.ir
    assert to_bytes(result.ir) == to_bytes(model.ir)
    assert same(model, result, images())


@settings(max_examples=6, deadline=None)
@given(
    blocks=st.integers(1, 3),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any),
    form=st.sampled_from(["one-hot", "scatter"]),
    metric=st.sampled_from(["keys", "input"]),
    protected=st.sampled_from([None, 0, 1, 2, 3]),
    proportional=st.booleans(),
    batch=st.integers(1, 3),
)
def test_each_merge_is_the_formula_and_sizes_always_sum_to_all_tokens(
    blocks, counts, form, metric, protected, proportional, batch
):
    model, feeds = tiny_vit(blocks=blocks), images(batch)
    counts = counts[:blocks]
    if not any(counts):
        return
    before = to_bytes(model.ir)
    options = {"counts": tuple(counts), "form": form, "metric": metric, "protected": protected}
    merged, stream = merge(model, proportional=proportional, **options), vision(model)
    assert to_bytes(model.ir) == before
    assert [value.name for value in merged.graph.outputs] == [value.name for value in model.graph.outputs]
    kept = PROTECTED if protected is None else protected
    names = [name for block in stream.blocks for name in (block.input, block.attended)]
    names += [block.attention.key.value for block in stream.blocks]
    names += [merged_value(merged, stream, number) for number in range(blocks)]
    values = taps(merged, feeds, list(dict.fromkeys((*names, *size_values(merged)))))
    sizes, left, gone = np.ones((batch, TOKENS, 1), np.float32), TOKENS, []
    for number, block in enumerate(stream.blocks):
        held = values[block.attended]
        assert held.shape[1] == left
        r = min(counts[number] if number < len(counts) else 0, (left - kept) // 2)
        keys = values[block.attention.key.value].swapaxes(-1, -2).mean(axis=1)
        if r:
            held, sizes = merge_formula(
                held, sizes, match(keys if metric == "keys" else values[block.input], r, kept), kept
            )
        left -= r
        gone.append(r)
        # The same operations in float32, with sums in another order.
        np.testing.assert_allclose(values[merged_value(merged, stream, number)], held, rtol=0, atol=2e-5)
    weighed = size_values(merged)
    # Attention reads the sizes of all merges before it; nobody reads those of the last block.
    assert len(weighed) == proportional * np.count_nonzero(gone[:-1])
    for name in weighed:
        assert (values[name].sum(axis=1) == TOKENS).all()
        assert (values[name][:, :kept] == 1).all() and (values[name] >= 1).all()


def test_attention_is_weighed_by_the_sizes_behind_each_merge():
    merged = merge(tiny_vit(blocks=3), r=3)
    values = taps(merged, images(), size_values(merged))
    assert [values[name].shape[1] for name in size_values(merged)] == [14, 11]


def image_of_two_patches():
    """An image of two kinds of patches, and a network that knows no positions, so that many tokens are equal."""
    model = tiny_vit(blocks=3)
    positions = model.graph.initializers["positions"]
    array = positions.const_value.numpy().copy()
    array[:, 1:] = array[:, 1:2]
    positions.const_value = ir.tensor(array, name="positions")
    kinds = np.random.default_rng(5).normal(0, 1, (2, 3, 8, 8))
    chosen = np.random.default_rng(6).integers(0, 2, (4, 4))
    image = kinds[chosen].transpose(2, 0, 3, 1, 4).reshape(1, 3, 32, 32)
    return model, {"pixel_values": image.astype(np.float32)}


def test_merging_duplicates_changes_nothing_and_only_with_log_sizes():
    model, feeds = image_of_two_patches()
    whole = run(model, feeds)["logits"]
    counts = (5, 2, 1)
    weighed = run(merge(model, counts=counts), feeds)["logits"]
    # Rounding of float32 through three blocks, relative to logits of order one.
    np.testing.assert_allclose(weighed, whole, rtol=0, atol=1e-5)
    unweighed = run(merge(model, counts=counts, proportional=False), feeds)["logits"]
    assert np.abs(unweighed - whole).max() > 1e-3


def test_both_forms_and_torch_agree(tiny_vit):
    feeds = images(2)
    assert accepted(tiny_vit, r=4)
    hot, scattered = merge(tiny_vit, r=4), merge(tiny_vit, r=4, form="scatter")
    first, second = run(hot, feeds)["logits"], run(scattered, feeds)["logits"]
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)
    with torch.no_grad():
        third = TorchGraph(hot.ir)({"pixel_values": torch.from_numpy(feeds["pixel_values"])})["logits"]
    np.testing.assert_allclose(third.numpy(), first, rtol=0, atol=1e-5)
    operators = {node.op_type for node in hot.graph}
    assert "ScatterElements" not in operators and "TopK" in operators
    assert all(node.attributes["sorted"].as_int() == 1 for node in hot.graph if node.op_type == "TopK")


@pytest.mark.parametrize("form", ["one-hot", "scatter"])
def test_a_graph_in_float16_merges_as_in_float32(form):
    whole = patch_vit(blocks=3)
    narrow, feeds = half(whole), patch_images(whole)
    drawn = {"counts": (4, 2, 1), "form": form, "score": "random"}  # pairs that rounding cannot change

    def logits(model):
        (found,) = run(model, feeds).values()
        return found

    rounding = np.abs(logits(narrow) - logits(whole)).max()
    found, wanted = logits(merge(narrow, **drawn)), logits(merge(whole, **drawn))
    # The smaller network rounds about as much as the whole one; means in float32 add next to nothing.
    assert np.abs(found - wanted).max() < 4 * rounding < np.abs(found - logits(narrow)).max()


@pytest.mark.parametrize("form", ["one-hot", "scatter"])
def test_many_large_activations_in_float16_merge_into_one_token(form):
    model = patch_vit(blocks=3)
    positions = model.graph.initializers["positions"]
    array = positions.const_value.numpy().copy()
    array[:, 1:] = array[:, 1:2]
    array[:, 1:, 5] = 9000  # nine of them are more than float16 holds
    positions.const_value = ir.tensor(array, name="positions")
    large, black = half(model), {"pixels": np.zeros((1, 3, 8, 8), np.float32)}
    merged = merge(large, counts=(8, 4, 2), form=form)
    # All patches are alike, so eight go to the first of the others, and a mean of them is what each of them is.
    assert taps(merged, black, size_values(merged))[size_values(merged)[0]].max() == 9
    # PyTorch adds float16 in float16; ONNX Runtime on a processor goes by float32.
    with torch.no_grad():
        (wanted,), (found,) = (
            TorchGraph(each.ir)({"pixels": torch.from_numpy(black["pixels"])}).values() for each in (large, merged)
        )
    wanted, found = wanted.numpy(), found.numpy()
    assert np.isfinite(wanted).all()
    # Sums of fewer terms, in float16: some roundings of 2^-11 in each of three blocks.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=20 * 2.0**-11 * np.abs(wanted).max())


def test_batch_stays_open_and_images_do_not_touch_each_other(tiny_vit):
    merged, feeds = merge(tiny_vit, r=3), images(3)
    together = run(merged, feeds)["logits"]
    for index in range(3):
        alone = run(merged, {"pixel_values": feeds["pixel_values"][index : index + 1]})["logits"]
        np.testing.assert_allclose(alone[0], together[index], rtol=0, atol=1e-5)


def test_all_tokens_come_back_to_who_reads_them(tiny_dinov2):
    merged, feeds = merge(tiny_dinov2, r=3), images(2)
    assert [str(value.shape) for value in merged.graph.outputs] == [str(v.shape) for v in tiny_dinov2.graph.outputs]
    before, after = run(tiny_dinov2, feeds), run(merged, feeds)
    assert {name: array.shape for name, array in after.items()} == {name: a.shape for name, a in before.items()}
    tokens = after["last_hidden_state"]
    assert all(len(np.unique(image.round(4), axis=0)) == TOKENS - 6 for image in tokens)
    np.testing.assert_array_equal(tokens[:, 0], after["pooler_output"])


def test_a_mean_over_tokens_becomes_the_mean_weighted_by_size():
    model, feeds = pooling_vit(), images(2)
    assert accepted(model, r=4)
    merged, stream = merge(model, r=4), vision(model)
    last = merged_value(merged, stream, 2)
    norm = next(node.outputs[0].name for node in merged.graph if node.name.startswith("norm"))
    values = taps(merged, feeds, [last, stream.output, norm, *size_values(merged)])
    assert values[last].shape[1] == TOKENS - 12 and values[norm].shape[1] == TOKENS
    restored, left = values[norm], TOKENS - 12
    for image in restored:
        unique, counts = np.unique(image.round(5), axis=0, return_counts=True)
        assert len(unique) == left and counts.sum() == TOKENS
        np.testing.assert_allclose(image.mean(axis=0), (unique * counts[:, None]).sum(axis=0) / TOKENS, atol=1e-4)


def test_a_class_token_is_read_without_bringing_others_back():
    merged = merge(tiny_vit(), r=3)
    assert not [node for node in merged.graph if node.name.startswith("tokens.restored")]
    norm = next(value for value in merged.graph.all_nodes() if value.name.startswith("norm"))
    assert norm.outputs[0].shape[1] == TOKENS - 6


@pytest.mark.parametrize("registers", [1, 2, 4])
def test_registers_are_protected(registers):
    model = vit_with_registers(registers)
    stream = vision(model)
    assert (stream.tokens, stream.protected, stream.grid) == (TOKENS + registers, 1 + registers, (4, 4))
    assert stream.patches == tuple(range(16))
    merged = merge(model, r=4)
    values = taps(merged, images(), size_values(merged))
    assert all((values[name][:, : 1 + registers] == 1).all() for name in size_values(merged))


def test_what_scores_are_masked_with_may_hide_nothing():
    model, feeds = tiny_vit(blocks=2), images()
    nothing = before_softmax(model, np.zeros((1, 1, TOKENS, TOKENS)))
    merged = merge(nothing, r=3)
    assert np.array_equal(run(merged, feeds)["logits"], run(merge(model, r=3), feeds)["logits"])
    assert "table_added" not in {node.name for node in merged.graph}
    shift = before_softmax(model, np.full((1, 2, TOKENS, TOKENS), 0.5))
    assert run(merge(shift, r=3), feeds)["logits"].shape == (3, 4)


def test_a_table_of_relative_positions_is_refused_by_name():
    table = np.random.default_rng(0).normal(0, 1, (1, 2, TOKENS, TOKENS))
    reason = refusal(before_softmax(tiny_vit(blocks=2), table))
    assert "table_added" in reason and "something else for each token" in reason


def test_attention_maps_that_are_outputs_are_refused():
    model = tiny_vit(blocks=2)
    stream = vision(model)
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    model.graph.outputs.append(values[stream.blocks[1].attention.probability])
    assert "no list of tokens" in refusal(model)


@pytest.mark.parametrize("build", [tiny_bert, tiny_gpt, tiny_cnn])
def test_networks_without_patches_are_skipped(build):
    verdict = MergeTokens().check(build(), context(MergeTokensOptions()))
    assert verdict.status == "skip" and "patches" in verdict.reason


def test_the_ratio_is_met_or_the_report_says_that_it_cannot_be():
    notes = {}
    for blocks, ratio in ((4, 0.9), (2, 0.95)):
        settings_ = context(MergeTokensOptions(ratio=ratio))
        MergeTokens().apply(tiny_vit(blocks=blocks), settings_)
        notes[blocks] = settings_.notes.remarks
    # 16 patches and a class token: four blocks can take 14 of them, two no more than 8 and 4.
    assert len(notes[4]) == 1 and notes[4][0].startswith("Merged 14 of 17")
    assert len(notes[2]) == 2 and notes[2][0].startswith("Merged 12 of 17") and "the 15 that ratio asks" in notes[2][1]


def test_counts_for_more_blocks_than_there_are_are_refused():
    assert "3 numbers for 2 blocks" in refusal(tiny_vit(blocks=2), counts=(1, 1, 1))
    with pytest.raises(StepError, match="3 numbers for 2 blocks"):
        merge(tiny_vit(blocks=2), counts=(1, 1, 1))


@pytest.mark.parametrize("wrong", [{"counts": (-3, 5, 2)}, {"speedup": float("inf")}, {"ratio": float("nan")}])
def test_numbers_that_mean_nothing_are_no_options(wrong):
    with pytest.raises(ValueError, match=r"greater|finite"):
        MergeTokensOptions(**wrong)


def test_more_protected_tokens_than_there_are_is_refused():
    assert "protected" in refusal(tiny_vit(), protected=40)


def test_open_image_sizes_are_refused_with_what_to_do():
    model = tiny_vit()
    model.graph.inputs[0].shape = ir.Shape(["batch", 3, "height", 32])
    assert "shapes" in refusal(model)


def test_an_older_opset_is_raised():
    model = tiny_vit(blocks=2)
    model.graph.opset_imports[""] = 17
    gelu = [node for node in model.graph if node.op_type == "Gelu"]
    assert gelu
    for node in gelu:
        node.op_type = "Relu"
    raised = model.ir.clone()
    raise_opset(raised, 18)
    merged = merge(model, r=3)
    assert merged.graph.opset_imports[""] >= 18
    assert run(merged, images())["logits"].shape == (3, 4)


@pytest.mark.parametrize("form", ["one-hot", "scatter"])
def test_fewer_tokens_cost_what_the_cost_model_says(form):
    blocks, width, r = 4, 32, 3
    model = tiny_vit(blocks=blocks)
    saved = count_cost(model.ir).macs - count_cost(merge(model, r=r, form=form).ir).macs
    counts, expected, matching = [TOKENS - r * number for number in range(blocks + 1)], 0, 0
    for before, after in pairwise(counts):
        expected += 4 * (TOKENS - before) * width**2 + 2 * (TOKENS**2 - before**2) * width
        expected += 4 * (TOKENS - after) * width**2
        matching += (before // 2) * ((before - 1) // 2) * 16
        if form == "one-hot":
            matching += (before // 2) * r * (width + 1)
    # The MLP of this network is twice as wide as its stream, so 4 in place of 8; a merge multiplies A with B, and
    # one-hot the r tokens and their sizes with a matrix of B rows.
    assert saved == pytest.approx(expected - matching, rel=0.02)


def test_a_merge_adds_as_many_operators_as_the_page_says():
    model = tiny_vit(blocks=4)
    once, twice = (len(merge(model, counts=counts).graph) for counts in ((0, 1), (0, 1, 1)))
    assert twice - once == 44


def test_it_works_on_a_pruned_model_and_its_result_can_be_quantized(tiny_vit):
    from tests.small_graphs import quantize

    data = images(8)
    settings_ = context(PruneStructureOptions(ratio=0.25), data)
    pruned = PruneStructure().apply(tiny_vit, settings_)
    assert count_cost(pruned.ir).macs < count_cost(tiny_vit.ir).macs
    merged = merge(pruned, r=3)
    quantized = quantize(merged, data, mode="static")
    assert "QuantizeLinear" in {node.op_type for node in quantized.graph}
    wanted, found = run(merged, data)["logits"], run(quantized, data)["logits"]
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)


def test_the_report_says_how_many_tokens_each_block_has():
    settings_ = context(MergeTokensOptions(r=20))
    MergeTokens().apply(tiny_vit(blocks=3), settings_)
    (remark,) = settings_.notes.remarks
    assert "14 of 17" in remark and "blocks 0 to 2 has 17, 9, 5, and 3 leave block 2" in remark


def test_streams_are_found_in_the_graph_alone():
    (stream,) = find_vision_streams(tiny_vit(blocks=3).ir, find_structure(tiny_vit(blocks=3).ir))
    assert (stream.tokens, stream.width, stream.protected, stream.grid) == (TOKENS, 32, 1, (4, 4))
    assert [block.number for block in stream.blocks] == [0, 1, 2] and not stream.obstacle


def with_output(model, name):
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    model.graph.outputs.append(values[name])
    return model


def test_features_from_the_middle_have_all_tokens():
    plain = tiny_vit(blocks=3)
    name = vision(plain).blocks[1].output
    model, feeds = with_output(plain, name), images(2)
    assert accepted(model, r=3)
    merged = merge(model, r=3)
    result = run(merged, feeds)
    assert [value.name for value in merged.graph.outputs] == ["logits", name]
    assert result[name].shape == (2, TOKENS, 32)
    assert all(len(np.unique(image.round(5), axis=0)) == TOKENS - 6 for image in result[name])
    np.testing.assert_array_equal(result["logits"], run(merge(tiny_vit(blocks=3), r=3), feeds)["logits"])


def test_what_a_merge_does_not_reach_is_not_touched():
    plain = tiny_vit(blocks=3)
    first = vision(plain).blocks[0].attended
    model, feeds = with_output(plain, first), images(2)
    result, before = run(merge(model, counts=(3,)), feeds), run(model, feeds)
    np.testing.assert_array_equal(result[first], before[first])


def test_who_reads_the_shape_of_fewer_tokens_reads_that_of_all():
    model, feeds = tiny_vit(blocks=2), images(2)
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    editor = GraphEditor(model.graph)
    source = values[vision(model).blocks[0].output]
    shape = editor.insert_after(source, "Shape", (source,))
    shape.outputs[0].name, shape.outputs[0].type = "sizes_of_tokens", ir.TensorType(ir.DataType.INT64)
    shape.outputs[0].shape = ir.Shape([3])
    model.graph.outputs.append(shape.outputs[0])
    merged = merge(model, r=3)
    assert run(merged, feeds)["sizes_of_tokens"].tolist() == [2, TOKENS, 32]
    assert not [node for node in merged.graph if node.name.startswith("tokens.restored")]


def test_tokens_from_before_and_behind_a_merge_cannot_be_joined():
    model = tiny_vit(blocks=3)
    stream = vision(model)
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    last = values[stream.blocks[2].block.residuals[1].branch]
    editor = GraphEditor(model.graph)
    node = values[stream.output].producer()
    joined = editor.insert_before(node, "Mul", (last, values[stream.blocks[0].input]), name="long_skip").outputs[0]
    joined.shape, joined.type = last.shape, last.type
    node.replace_input_with(list(node.inputs).index(last), joined)
    assert "long_skip" in refusal(model)
    with pytest.raises(StepError, match="long_skip"):
        merge(model, r=3)


def test_fused_attention_is_named():
    model = tiny_vit(blocks=2)
    stream = vision(model)
    fused = replace(stream.blocks[1], attention=replace(stream.blocks[1].attention, fused="MultiHeadAttention"))
    reason = obstacle_to_fewer(model.ir, replace(stream, blocks=(stream.blocks[0], fused)))
    assert "MultiHeadAttention" in reason and "block 1" in reason


def test_products_that_mix_tokens_are_refused_by_name():
    model = tiny_vit(blocks=2)
    stream = vision(model)
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    source = values[stream.blocks[1].block.residuals[1].branch]
    editor = GraphEditor(model.graph)
    weight = editor.add_initializer("mixer", np.eye(TOKENS, dtype=np.float32)[None])
    mixed = editor.insert_after(source, "MatMul", (weight, source), name="mixing")
    mixed.outputs[0].shape, mixed.outputs[0].type = source.shape, source.type
    editor.replace_uses(source, mixed.outputs[0], keep=(mixed,))
    assert "mixing" in refusal(model) and "mixes tokens" in refusal(model)
