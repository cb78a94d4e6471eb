"""Statistics are taken without padding where the graph masks it and its length is free."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgesmith.execution.sample import sample_inputs
from edgesmith.execution.unpadded import UnpaddedSource, find_mask, find_padding, used_length, without_padding
from edgesmith.graph.structure import find_structure
from edgesmith_calibration.sources import ArraySource
from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.quantize_fp8 import QuantizeFp8
from edgesmith_tokens.merge_tokens import MergeTokens
from edgesmith_tokens.options.merging import MergeTokensOptions
from small_graphs import context

LENGTHS = (3, 7, 5)


def texts(model, longest=12):
    """Samples whose positions behind the text hold tokens that would show in every statistic."""
    sample = sample_inputs(model.ir, seed=3, dimensions={"batch": len(LENGTHS), "sequence": longest})
    mask = np.arange(longest) < np.array(LENGTHS)[:, None]
    return {name: mask.astype(array.dtype) if "mask" in name else array for name, array in sample.items()}


def scales(model, data):
    options = QuantizeFp8Options(heads=True, minimum_head_size=1)
    used = context(options, data)
    result = QuantizeFp8().apply(model, used)
    found = {
        each.inputs[0].name: float(each.inputs[1].const_value.numpy())
        for each in result.graph
        if each.op_type == "QuantizeLinear"
    }
    return found, used.notes.remarks


def test_padding_changes_no_scale(tiny_bert):
    padded = texts(tiny_bert)
    found, remarks = scales(tiny_bert, padded)
    assert not any("padding" in remark for remark in remarks)
    other = {name: array.copy() for name, array in padded.items()}
    tokens = next(name for name in other if name == "input_ids")
    hidden = np.arange(12) >= np.array(LENGTHS)[:, None]
    other[tokens][hidden] = (other[tokens][hidden] + 1) % 20
    assert (other[tokens] != padded[tokens]).any()
    assert scales(tiny_bert, other)[0] == found


def test_samples_are_cut_one_by_one_behind_their_last_token(tiny_bert):
    data = texts(tiny_bert)
    source, remark = without_padding(tiny_bert.ir, find_structure(tiny_bert.ir).attentions, ArraySource(data))
    assert remark == ""
    assert isinstance(source, UnpaddedSource)
    assert len(source) == len(LENGTHS)
    for index, batch in enumerate(source.batches(8)):
        for name, array in data.items():
            np.testing.assert_array_equal(batch.inputs[name], array[index : index + 1, : LENGTHS[index]])


def test_selected_samples_are_cut_one_by_one_too(tiny_bert):
    data = texts(tiny_bert)
    source, _ = without_padding(tiny_bert.ir, find_structure(tiny_bert.ir).attentions, ArraySource(data))
    assert [batch.inputs["input_ids"].shape[1] for batch in source.select([1, 2]).batches(8)] == [*LENGTHS[1:]]
    assert [batch.inputs["input_ids"].shape[1] for batch in source.take(2).batches(8)] == [*LENGTHS[:2]]


def test_fixed_lengths_keep_their_padding_and_say_so(tiny_bert):
    model = tiny_bert.clone()
    for value in model.graph.inputs:
        value.shape = ir.Shape([value.shape[0], 12])
    data = ArraySource(texts(tiny_bert))
    source, remark = without_padding(model.ir, find_structure(model.ir).attentions, data)
    assert source is data
    assert "Statistics include padding" in remark and "attention_mask" in remark
    whole = {name: np.ones_like(array) if "mask" in name else array for name, array in texts(tiny_bert).items()}
    assert without_padding(model.ir, find_structure(model.ir).attentions, ArraySource(whole))[1] == ""
    assert find_mask(model.ir, find_structure(model.ir).attentions) == "attention_mask"


def test_sizes_of_merged_tokens_are_no_padding(tiny_vit):
    sample = sample_inputs(tiny_vit.ir, dimensions={"batch": 2})
    merged = MergeTokens().apply(tiny_vit, context(MergeTokensOptions(r=2), sample))
    attentions = find_structure(merged.ir).attentions
    assert any(attention.padding_mask for attention in attentions)
    (image,) = sample.values()
    image[:] = 0
    assert find_padding(merged.ir, attentions) == (None, "")
    assert without_padding(merged.ir, attentions, ArraySource(sample))[1] == ""


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_models_without_a_mask_get_their_data_as_it_is(name, request):
    model = request.getfixturevalue(f"tiny_{name}")
    data = ArraySource(sample_inputs(model.ir))
    attentions = find_structure(model.ir).attentions
    assert without_padding(model.ir, attentions, data) == (data, "")
    assert find_mask(model.ir, attentions) is None


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 1)))
def test_used_length_covers_everything_shown_and_nothing_more(mask):
    length = used_length(mask)
    assert 1 <= length <= mask.shape[1]
    assert not mask[:, length:].any()
    assert length == 1 or mask[:, length - 1].any()
