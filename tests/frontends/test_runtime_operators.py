"""Operators that ONNX Runtime's optimizer fused: loading writes them in those of ONNX, with the same numbers."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.small_graphs import context, executed_operators, operators, run

from edgesmith.execution.reference import ReferenceSession
from edgesmith.frontends import runtime_operators
from edgesmith.frontends.equality import HALF_TOLERANCE, find_difference
from edgesmith.frontends.normalize import normalize, normalize_with_remarks
from edgesmith.frontends.onnx_file import OnnxFrontend
from edgesmith.frontends.runtime_operators import unfuse
from edgesmith.frontends.widening import with_float32
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
TABLES = {"first": (8, 16), "second": (8, 16), "third": (8, 16), "g": (16,), "o": (16,)}
WEIGHTS = {"w", "b", "g", "o", "first", "second", "third"}

FORMS = {
    "Attention": ("Attention", {**SQUARE}, HEADS),
    "Attention of another width": ("Attention", {"x": (2, 5, 16), "w": (16, 40), "b": (40,)},
                                   {**HEADS, "qkv_hidden_sizes": [16, 16, 8]}),
    "Attention with a mask": ("Attention", {**SQUARE, "mask": (2, 5)}, {**HEADS, "mask_filter_value": -5.0}),
    "Attention with something added": ("Attention", {**SQUARE, "": (), " ": (), "added": (1, 4, 5, 5)}, HEADS),
    "Attention with a scale": ("Attention", {**SQUARE}, {**HEADS, "scale": 1.3}),
    "Attention with a mask for each query": ("Attention", {**SQUARE, "mask": (2, 5, 5)}, HEADS),
    "Attention with lengths": ("Attention", {**SQUARE, "lengths": (2,)}, HEADS),
    "Attention with ends and starts": ("Attention", {**SQUARE, "bounds": (4,)}, HEADS),
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
    "SimplifiedLayerNormalization": ("SimplifiedLayerNormalization", {"x": (2, 5, 16), "g": (16,)}, {"epsilon": 0.001}),
    "EmbedLayerNormalization": ("EmbedLayerNormalization", {"ids": (2, 5), "kinds": (2, 5), **TABLES}, {}),
    "EmbedLayerNormalization without kinds": (
        "EmbedLayerNormalization", {"ids": (2, 5), "": (), **TABLES, "third": ()}, {"epsilon": 0.001}),
    "EmbedLayerNormalization with positions": (
        "EmbedLayerNormalization", {"ids": (2, 5), "kinds": (2, 5), **TABLES, "": (), "places": (1, 5)}, {}),
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
    "a mask of another form": ("Attention", {**SQUARE, "mask": (8,)}, HEADS),
    "turned batches": ("FusedMatMul", {"x": (3, 2, 4), "y": (2, 4, 5)}, {"transBatchA": 1}),
}


def one_operator(op_type, shapes, attributes, outputs=("out",), dtype=np.float32):
    """Return a graph of one operator, and what it reads but its `WEIGHTS`."""
    generator = np.random.default_rng(0)
    sizes = {name: shape for name, shape in shapes.items() if shape}
    data = {name: generator.normal(size=shape).astype(dtype) for name, shape in sizes.items()}
    if "mask" in data:
        data["mask"] = (data["mask"] < np.sort(data["mask"].ravel())[-1]).astype(np.int32)
    whole = {"lengths": [3, 5], "bounds": [4, 5, 2, 0], "places": [[3, 1, 0, 7, 2]]}
    whole |= {"ids": generator.integers(0, 8, (2, 5)), "kinds": generator.integers(0, 2, (2, 5))}
    data |= {name: np.asarray(whole[name], np.int32) for name in whole if name in data}
    names = [name if name in data else "" for name in shapes]
    domain = "" if op_type == "SimplifiedLayerNormalization" else "com.microsoft"
    # ONNX Runtime crashes where this one has a single output.
    further = ["unread"] if op_type == "EmbedLayerNormalization" and len(outputs) == 1 else []
    node = helper.make_node(op_type, names, [*outputs, *further], "one", domain=domain, **attributes)
    weights = [numpy_helper.from_array(array, name) for name, array in data.items() if name in WEIGHTS]
    feeds = {name: array for name, array in data.items() if name not in WEIGHTS}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    types = {"mask_index": TensorProto.INT32}
    results = [helper.make_tensor_value_info(name, types.get(name, kind), None) for name in outputs if name]
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


@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_loads_before_anything_else_is_cleaned(name):
    source, feeds = one_operator(*FORMS[name])
    result = source.clone()
    unfuse(result)
    assert {node.domain for node in result.graph} == {""}
    compare(source, result, feeds)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_written_in_float16_too(name):
    source, feeds = one_operator(*FORMS[name], dtype=np.float16)
    result = normalize(source)
    assert {node.domain for node in result.graph} == {""}
    assert result.graph.outputs[0].dtype == ir.DataType.FLOAT16
    # Rounded to float16 in other places; in float32 only the numbers that are stated differ, by half an ulp at most.
    wide = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in feeds.items()}
    outputs = [ReferenceSession(with_float32(each)).run(wide) for each in (source, result)]
    assert find_difference(*outputs, HALF_TOLERANCE) == ""


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


def test_an_embedding_gives_the_lengths_of_its_mask_and_its_sum():
    shapes = {"ids": (2, 5), "kinds": (2, 5), **TABLES, "mask": (2, 5)}
    source, feeds = one_operator("EmbedLayerNormalization", shapes, {}, ("out", "mask_index", "sum"))
    result = normalize(source)
    assert {node.domain for node in result.graph} == {""}
    compare(source, result, feeds)


def test_what_goes_wrong_for_one_operator_leaves_the_others_written(monkeypatch, tmp_path):
    monkeypatch.setitem(runtime_operators._FORMS, "BiasGelu", lambda new: (new.add("Neg", new.inputs[0]),))
    result = normalize_with_remarks(ir.load(optimized(tiny_vit(), tmp_path)))
    assert kinds(result.model) == {"BiasGelu"}
    assert "writing BiasGelu" in result.remarks[0] and "stay in the graph: 2 BiasGelu" in result.remarks[1]


def test_what_stays_is_said_once(tmp_path):
    source, _ = one_operator(*STAY["causal"])
    source.graph.outputs[0].shape = ir.Shape((2, 5, 16))
    onnx.save(ir.to_proto(source), tmp_path / "causal.onnx")
    model = OnnxFrontend().load(tmp_path / "causal.onnx")
    model.save(tmp_path / "saved")
    for each in (model, OnnxFrontend().load(tmp_path / "saved")):
        assert len(each.provenance.remarks) == 1 and "1 MultiHeadAttention" in each.provenance.remarks[0]


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


RMS = """
   r (float[N,4,8] x) => (float[N,4,8] y)
   <float[8] g = {1, 2, 3, 4, 5, 6, 7, 8}, float two = {2}, float small = {0.001}>
   { s = Pow(x, two) m = ReduceMean<axes=[-1]>(s) a = Add(m, small) q = Sqrt(a) d = Div(x, q) y = Mul(d, g) }
"""


@pytest.mark.parametrize("opset", [14, 17])
def test_a_file_with_fused_norms_over_the_root_of_the_mean_square_loads(opset, tmp_path):
    graph = onnx.parser.parse_graph(RMS)
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    file = optimized(Model(ir.from_proto(plain), Task(), Provenance("test", "test", "test")), tmp_path)
    assert [node.op_type for node in ir.load(file).graph] == ["SimplifiedLayerNormalization"]
    loaded = OnnxFrontend().load(file)
    assert "Sqrt" in operators(loaded) and not loaded.provenance.remarks
    compare(ir.from_proto(plain), loaded.ir, {"x": np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)})


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return a file of a BERT at opset 14, with decomposed norms, as PyTorch wrote it for years."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, attn_implementation="eager", initializer_range=0.3, return_dict=False,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("bert") / "bert.onnx"
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    forward = model.forward
    model.forward = lambda ids, mask, kinds: forward(ids, attention_mask=mask, token_type_ids=kinds)
    ids, names = torch.ones(2, 7, dtype=torch.int64), ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "sequence"} for name in (*names, "out")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (ids, ids, ids * 0), file, opset_version=14, dynamo=False, input_names=names, output_names=["out"],
            dynamic_axes=axes,
        )  # fmt: skip
    return file


OPTIMIZED = {
    "as it comes": ({}, False, {"EmbedLayerNormalization", "Attention", "SkipLayerNormalization", "BiasGelu"}),
    "as it comes, in float16": ({}, True, {"EmbedLayerNormalization", "Attention", "SkipLayerNormalization"}),
    "lengths of sums": ({"enable_embed_layer_norm": False}, False, {"Attention"}),
    "masks, in float16": ({"enable_embed_layer_norm": False, "attention_mask_format": 2}, True, {"Attention"}),
    "lists, in float16": (
        {"enable_embed_layer_norm": False, "attention_mask_format": 2, "use_multi_head_attention": True},
        True, {"MultiHeadAttention"}),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZED)
def test_files_of_the_optimizer_for_transformers_are_written(name, bert, tmp_path):
    fusion_options = pytest.importorskip("onnxruntime.transformers.fusion_options")
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    settings, half, fused = OPTIMIZED[name]
    options = fusion_options.FusionOptions("bert")
    for each, value in settings.items():
        setattr(options, each, value)
    made = optimizer.optimize_model(
        str(bert), "bert", num_heads=4, hidden_size=32, opt_level=0, optimization_options=options
    )
    if half:
        made.convert_float_to_float16(keep_io_types=True)
    made.save_model_to_file(str(tmp_path / "made.onnx"))
    assert fused <= kinds(ir.load(tmp_path / "made.onnx"))
    loaded = OnnxFrontend().load(tmp_path / "made.onnx")
    assert not kinds(loaded.ir) and not loaded.provenance.remarks
    structure = find_structure(loaded.ir)
    assert [each.heads for each in structure.attentions] == [4, 4]
    assert [len(stream.blocks) for stream in structure.streams] == [2]
    mask = np.array([[1] * 9, [1] * 5 + [0] * 4], np.int64)
    feeds = {"input_ids": np.arange(18).reshape(2, 9), "attention_mask": mask, "token_type_ids": mask}
    first, second = (ReferenceSession(each).run(feeds)["out"] for each in (bert, loaded.ir))
    # Weights, and what each layer gives, are in float16: 10 roundings in each layer of values up to 4.
    np.testing.assert_allclose(second, first, rtol=0, atol=2 * 10 * 2**-11 * 4 if half else ROUNDING)


def test_norms_in_an_opset_that_has_none_are_kept(bert, tmp_path):
    made = tmp_path / "made.onnx"
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(made)
    onnxruntime.InferenceSession(str(bert), settings)
    assert ir.load(made).opset_imports[""] == 14
    loaded = OnnxFrontend().load(made)
    assert operators(loaded)["LayerNormalization"] == 5 and loaded.ir.opset_imports[""] == 20
    assert not kinds(loaded.ir) and not loaded.provenance.remarks
