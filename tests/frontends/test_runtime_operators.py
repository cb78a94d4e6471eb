"""Operators that ONNX Runtime's optimizer fused: loading writes them in those of ONNX, with the same numbers."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.small_graphs import context, executed_operators, operators, run

from edgesmith.frontends.normalize import normalize
from edgesmith.frontends.onnx_file import OnnxFrontend
from edgesmith.frontends.runtime_operators import unfuse
from edgesmith.graph.structure import find_structure
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith.testing.models import tiny_bert, tiny_cnn, tiny_vit
from edgesmith_folding.options.removal import RemoveBlocksOptions
from edgesmith_folding.remove_blocks import RemoveBlocks
from edgesmith_onnxruntime.attention import fuse_attention
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.prune_structure import PruneStructure
from edgesmith_tokens.aggregate_tokens import AggregateTokens
from edgesmith_tokens.merge_tokens import MergeTokens
from edgesmith_tokens.options.aggregation import AggregateTokensOptions
from edgesmith_tokens.options.merging import MergeTokensOptions

# Sums of up to 24 products of float32 in another order, of values below 10.
ROUNDING = 1e-5
HEADS = {"num_heads": 4}
LISTS = {"q": (2, 5, 16), "k": (2, 7, 16), "v": (2, 7, 16)}
SQUARE = {"x": (2, 5, 16), "w": (16, 48), "b": (48,)}

FORMS = {
    "Attention": ("Attention", {**SQUARE}, HEADS),
    "Attention of another width": ("Attention", {"x": (2, 5, 16), "w": (16, 40), "b": (40,)},
                                   {**HEADS, "qkv_hidden_sizes": [16, 16, 8]}),
    "Attention with a mask": ("Attention", {**SQUARE, "mask": (2, 5)}, {**HEADS, "mask_filter_value": -5.0}),
    "Attention with something added": ("Attention", {**SQUARE, "": (), " ": (), "added": (1, 4, 5, 5)}, HEADS),
    "Attention with a scale": ("Attention", {**SQUARE}, {**HEADS, "scale": 1.3}),
    "MultiHeadAttention": ("MultiHeadAttention", LISTS, HEADS),
    "MultiHeadAttention with a bias": ("MultiHeadAttention", {**LISTS, "b": (48,)}, HEADS),
    "MultiHeadAttention of another width": ("MultiHeadAttention", {**LISTS, "v": (2, 7, 8), "b": (40,)}, HEADS),
    "MultiHeadAttention with a mask": ("MultiHeadAttention", {**LISTS, "": (), "mask": (2, 7)}, HEADS),
    "MultiHeadAttention with something added": (
        "MultiHeadAttention", {**LISTS, "": (), " ": (), "added": (2, 1, 5, 7)}, {**HEADS, "scale": 0.7}),
    "SkipLayerNormalization": ("SkipLayerNormalization", {"x": (2, 5, 16), "y": (2, 5, 16), "g": (16,), "o": (16,),
                                                          "b": (16,)}, {"epsilon": 0.001}),
    "SkipLayerNormalization without offset": (
        "SkipLayerNormalization", {"x": (2, 5, 16), "y": (2, 5, 16), "g": (16,)}, {}),
    "SkipSimplifiedLayerNormalization": (
        "SkipSimplifiedLayerNormalization", {"x": (2, 5, 16), "y": (2, 5, 16), "g": (16,)}, {"epsilon": 0.001}),
    "FusedMatMul": ("FusedMatMul", {"x": (2, 3, 5, 4), "y": (2, 3, 6, 4)}, {"transB": 1, "alpha": 0.3}),
    "FusedMatMul, turned first": ("FusedMatMul", {"x": (5, 4), "y": (5, 6)}, {"transA": 1}),
    "BiasGelu": ("BiasGelu", {"x": (2, 5, 16), "b": (16,)}, {}),
    "FastGelu": ("FastGelu", {"x": (2, 5, 16)}, {}),
    "FastGelu with a bias": ("FastGelu", {"x": (2, 5, 16), "b": (16,)}, {}),
    "Gelu": ("Gelu", {"x": (2, 5, 16)}, {}),
    "QuickGelu": ("QuickGelu", {"x": (2, 5, 16)}, {}),
    "QuickGelu with a number": ("QuickGelu", {"x": (2, 5, 16)}, {"alpha": 1.3}),
    "FusedConv": ("FusedConv", {"x": (1, 4, 6, 6), "w": (8, 4, 3, 3), "b": (8,)},
                  {"activation": "Relu", "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "FusedConv with a number": ("FusedConv", {"x": (1, 4, 6, 6), "w": (8, 4, 1, 1), "b": (8,), "z": (1, 8, 6, 6)},
                                {"activation": "LeakyRelu", "activation_params": [0.3]}),
    "FusedGemm": ("FusedGemm", {"x": (3, 4), "w": (6, 4), "b": (6,)},
                  {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.2}),
}  # fmt: skip
STAY = {
    "causal": ("MultiHeadAttention", LISTS, {**HEADS, "unidirectional": 1}),
    "packed queries, keys and values": ("MultiHeadAttention", {"x": (2, 5, 4, 3, 4)}, HEADS),
    "heads apart": ("MultiHeadAttention", {**LISTS, "k": (2, 4, 7, 4), "v": (2, 4, 7, 4)}, HEADS),
    "lengths as a mask": ("Attention", {**SQUARE, "mask": (2,)}, HEADS),
    "turned batches": ("FusedMatMul", {"x": (3, 2, 4), "y": (2, 4, 5)}, {"transBatchA": 1}),
}


def one_operator(op_type, shapes, attributes, outputs=("out",)):
    """Return a graph of one operator, and what it reads. Vectors and matrices named w, b, g or o are its weights."""
    generator = np.random.default_rng(0)
    data = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items() if name.strip()}
    if "mask" in data:
        data["mask"] = (data["mask"] < np.sort(data["mask"].ravel())[-1]).astype(np.int32)
    names = [name.strip() for name in shapes]
    node = helper.make_node(op_type, names, list(outputs), "one", domain="com.microsoft", **attributes)
    weights = [numpy_helper.from_array(array, name) for name, array in data.items() if name in "wbgo"]
    feeds = {name: array for name, array in data.items() if name not in "wbgo"}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name]
    graph = helper.make_graph([node], "one", inputs, results, weights)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10)), feeds


def compare(source: ir.Model, result: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    sessions = (onnxruntime.InferenceSession(ir.to_proto(each).SerializeToString()) for each in (source, result))
    first, second = (session.run(None, feeds) for session in sessions)
    for wanted, found in zip(first, second, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_an_operator_is_written_with_the_same_numbers(name):
    source, feeds = one_operator(*FORMS[name])
    result = normalize(source)
    assert {node.domain for node in result.graph} == {""}
    assert [value.name for value in result.graph.outputs] == ["out"]
    compare(source, result, feeds)


@pytest.mark.parametrize("name", STAY)
def test_what_is_not_written_stays_as_it_is(name):
    source, _ = one_operator(*STAY[name])
    digest = ir.to_proto(source).SerializeToString()
    unfuse(source)
    assert ir.to_proto(source).SerializeToString() == digest


def test_the_sum_in_front_of_a_norm_is_an_output_of_its_own():
    shapes, attributes = FORMS["SkipLayerNormalization"][1:]
    source, feeds = one_operator("SkipLayerNormalization", shapes, attributes, ("out", "", "", "sum"))
    result = normalize(source)
    assert [node.op_type for node in result.graph] == ["Add", "Add", "LayerNormalization"]
    assert [value.name for value in result.graph.outputs] == ["out", "sum"]
    compare(source, result, feeds)


def test_statistics_of_a_norm_keep_the_operator():
    shapes, attributes = FORMS["SkipLayerNormalization"][1:]
    source, _ = one_operator("SkipLayerNormalization", shapes, attributes, ("out", "mean"))
    unfuse(source)
    assert [node.op_type for node in source.graph] == ["SkipLayerNormalization"]


def test_an_older_opset_keeps_them():
    source, _ = one_operator(*FORMS["BiasGelu"])
    source.graph.opset_imports[""] = 17
    unfuse(source)
    assert [node.op_type for node in source.graph] == ["BiasGelu"]


def optimized(model: Model, folder: Path, **options: object) -> Path:
    """Return the file that ONNX Runtime's optimizer makes of a model."""
    plain, file = folder / "plain.onnx", folder / "optimized.onnx"
    onnx.save(ir.to_proto(model.ir), plain)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(file)
    onnxruntime.InferenceSession(str(plain), settings)
    return file


def kinds(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph if node.domain == "com.microsoft"}


@pytest.mark.parametrize(
    ("build", "fused"),
    [(tiny_vit, "FusedMatMul"), (tiny_vit, "BiasGelu"), (tiny_bert, "SkipLayerNormalization"), (tiny_cnn, "FusedConv")],
)
def test_an_optimized_file_has_the_structure_that_it_had_before(build, fused, tmp_path):
    model = build()
    file = optimized(model, tmp_path)
    assert fused in kinds(ir.load(file))
    loaded = OnnxFrontend().load(file)
    assert not kinds(loaded.ir)
    before, after = find_structure(model.ir), find_structure(loaded.ir)
    assert [len(stream.blocks) for stream in after.streams] == [len(stream.blocks) for stream in before.streams]
    assert [each.heads for each in after.attentions] == [each.heads for each in before.attentions]


METHODS = {
    "merge": (MergeTokens, MergeTokensOptions(r=2)),
    "aggregate": (AggregateTokens, AggregateTokensOptions(at=(1,), form="pool")),
    "prune": (PruneStructure, PruneStructureOptions(ratio=0.25)),
    "remove": (RemoveBlocks, RemoveBlocksOptions(count=1)),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_do_to_an_optimized_file_what_they_do_to_the_model_itself(name, tmp_path):
    method, options = METHODS[name]
    model = tiny_vit(blocks=3)
    loaded = OnnxFrontend().load(optimized(model, tmp_path))
    data = {"pixel_values": np.random.default_rng(0).normal(0, 1, (8, 3, 32, 32)).astype(np.float32)}
    results = []
    for each in (model, loaded):
        settings = context(options, data)
        assert method().check(each, settings).status == "ok"
        changed = method().apply(each, settings)
        assert not np.allclose(run(changed, data)["logits"], run(each, data)["logits"], atol=100 * ROUNDING)
        results.append(run(changed, data)["logits"])
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=ROUNDING)


def test_what_was_fused_for_onnx_runtime_is_read_back():
    model = tiny_vit(blocks=2)
    fused, count = fuse_attention(model.ir)
    assert count == 2
    back = model.with_ir(normalize(fused))
    assert operators(back)["Softmax"] == 2 and not kinds(back.ir)
    assert all(attention.value is not None for attention in find_structure(back.ir).attentions)
    compare(model.ir, back.ir, {"pixel_values": np.zeros((2, 3, 32, 32), np.float32)})


AGAIN = {
    "SkipLayerNormalization": "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization": "SimplifiedLayerNormalization",
    "FusedMatMul": "FusedMatMul",
    "BiasGelu": "BiasGelu",
    "FusedGemm": "FusedGemm",
}


@pytest.mark.parametrize("name", AGAIN)
def test_onnx_runtime_fuses_what_was_written(name):
    source, _ = one_operator(*FORMS[name])
    plain = Model(normalize(source), Task(), Provenance("test", "test", "test"))
    assert executed_operators(plain)[AGAIN[name]] == 1 and not operators(plain)[AGAIN[name]]


@pytest.mark.parametrize("name", [name for name in FORMS if "Attention" in name and "width" not in name])
def test_the_target_fuses_attention_again(name):
    source, _ = one_operator(*FORMS[name])
    assert fuse_attention(normalize(source))[1] == 1
