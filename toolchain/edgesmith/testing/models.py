"""Tiny models with fixed random weights, one of each family of graphs, for tests of plugins.

They are written by hand, so they need neither torch nor a download and are made in milliseconds. Each has what makes
its family hard to rewrite: residual sums, depthwise and grouped convolutions, shared tables, masks, grouped queries,
codes in place of weights, weights in a file of their own, sizes that are not known, branches that run or do not.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith.testing import transformer
from edgesmith.testing.builder import GraphBuilder

CLASSES = 4
"""Classes of the tiny classifiers."""


def tiny_mlp(*, seed: int = 0) -> Model:
    """Return a two-layer MLP with a ReLU: input "x" float32 [batch, 8], output "y" float32 [batch, 4]."""
    float32 = ir.TensorType(ir.DataType.FLOAT)
    generator = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> ir.Value:
        array = generator.standard_normal(shape).astype(np.float32) / np.float32(shape[0] ** 0.5)
        return ir.Value(name=name, const_value=ir.tensor(array, name=name), type=float32, shape=ir.Shape(shape))

    x = ir.Value(name="x", type=float32, shape=ir.Shape(["batch", 8]))
    weights = [weight("up", 8, 16), weight("up_bias", 16), weight("down", 16, 4), weight("down_bias", 4)]
    up = ir.node("Gemm", [x, weights[0], weights[1]], name="up_projection")
    activation = ir.node("Relu", [up.outputs[0]], name="activation")
    down = ir.node("Gemm", [activation.outputs[0], weights[2], weights[3]], name="down_projection")
    for node, width in ((up, 16), (activation, 16), (down, 4)):
        node.outputs[0].type, node.outputs[0].shape = float32, ir.Shape(["batch", width])
        node.outputs[0].name = f"{node.name}_output"
    y = down.outputs[0]
    y.name = "y"
    graph = ir.Graph([x], [y], nodes=[up, activation, down], initializers=weights, opset_imports={"": 20}, name="mlp")
    return Model(ir.Model(graph, ir_version=10), Task(), Provenance("tiny_mlp", "testing", f"seed {seed}"))


def tiny_cnn(*, seed: int = 0) -> Model:
    """Return a classifier of images 3 x 16 x 16 with a residual bottleneck around a depthwise convolution.

    Input "image" [batch, 3, 16, 16], output "logits" [batch, 4]. Some convolutions have a BatchNormalization behind
    them, one is grouped.
    """
    builder = GraphBuilder(seed=seed, image=("batch", 3, 16, 16))
    stem = builder.conv("image", "stem", 3, 16, kernel=3, strides=[2, 2], pads=[1, 1, 1, 1])
    stem = _relu6(builder, builder.norm(stem, "stem.norm", 16))
    wide = _relu6(builder, builder.conv(stem, "expand", 16, 32))
    depth = builder.conv(wide, "depthwise", 32, 32, kernel=3, pads=[1, 1, 1, 1], group=32)
    depth = _relu6(builder, builder.norm(depth, "depthwise.norm", 32))
    joined = builder.add("Add", stem, builder.conv(depth, "project", 32, 16), name="residual")
    grouped = builder.add("Relu", builder.conv(joined, "grouped", 16, 32, kernel=3, pads=[1, 1, 1, 1], group=2))
    pooled = builder.add("Flatten", builder.add("GlobalAveragePool", grouped))
    head = (builder.weight("head.weight", CLASSES, 32), builder.weight("head.bias", CLASSES))
    builder.add("Gemm", pooled, *head, name="head", transB=1)
    return _model(builder, "tiny_cnn", seed, {"head_0": "logits"}, kind="image-classification")


def tiny_bert(*, seed: int = 0, blocks: int = 2) -> Model:
    """Return an encoder of some blocks (post norm) with a classifier.

    Inputs "input_ids" and "attention_mask" int64 [batch, sequence], output "logits" [batch, 4].
    """
    sizes = transformer.Sizes()
    builder = _text_builder(seed, "input_ids", "attention_mask")
    hidden = transformer.token_embedding(builder, transformer.token_table(builder, sizes))
    hidden = transformer.position_embedding(builder, hidden, sizes)
    hidden = transformer.layer_norm(builder, hidden, "embedding.norm", sizes.width)
    mask = transformer.visible_mask(builder)
    for block in _names(blocks):
        attended = transformer.attention(builder, hidden, f"{block}.attention", sizes, added=mask)
        hidden = transformer.layer_norm(builder, builder.add("Add", attended, hidden), f"{block}.norm1", sizes.width)
        rewritten = transformer.mlp(builder, hidden, f"{block}.mlp", sizes)
        hidden = transformer.layer_norm(builder, builder.add("Add", rewritten, hidden), f"{block}.norm2", sizes.width)
    first = builder.add("Gather", hidden, builder.number(0, np.int64), axis=1)
    pooled = builder.add("Tanh", builder.linear(first, "pooler", sizes.width, sizes.width))
    logits = builder.linear(pooled, "head", sizes.width, CLASSES)
    return _model(builder, "tiny_bert", seed, {logits: "logits"}, kind="text-classification")


def tiny_vit(*, seed: int = 0, blocks: int = 2) -> Model:
    """Return a vision transformer of some blocks (pre norm) with a class token.

    Input "pixel_values" [batch, 3, 32, 32] in patches of 8, output "logits" [batch, 4].
    """
    sizes = transformer.Sizes()
    builder = GraphBuilder(seed=seed, pixel_values=("batch", 3, 32, 32))
    patches = builder.conv("pixel_values", "patches", 3, sizes.width, kernel=8, strides=[8, 8])
    rows = builder.add("Transpose", builder.add("Reshape", patches, builder.integers(0, 0, -1)), perm=[0, 2, 1])
    batch = builder.add("Shape", "pixel_values", start=0, end=1)
    shape = builder.add("Concat", batch, builder.integers(1, sizes.width), axis=0)
    token = builder.add("Expand", builder.weight("class.token", 1, 1, sizes.width), shape)
    hidden = builder.add("Concat", token, rows, axis=1)
    hidden = builder.add("Add", hidden, builder.weight("positions", 1, 17, sizes.width))
    for block in _names(blocks):
        normal = transformer.layer_norm(builder, hidden, f"{block}.norm1", sizes.width)
        hidden = builder.add("Add", transformer.attention(builder, normal, f"{block}.attention", sizes), hidden)
        normal = transformer.layer_norm(builder, hidden, f"{block}.norm2", sizes.width)
        hidden = builder.add("Add", transformer.mlp(builder, normal, f"{block}.mlp", sizes), hidden)
    hidden = transformer.layer_norm(builder, hidden, "norm", sizes.width)
    first = builder.add("Gather", hidden, builder.number(0, np.int64), axis=1)
    logits = builder.linear(first, "head", sizes.width, CLASSES)
    return _model(builder, "tiny_vit", seed, {logits: "logits"}, kind="image-classification")


def tiny_gpt(*, seed: int = 0, blocks: int = 2) -> Model:
    """Return a causal language model of some blocks whose head is the token table (tied).

    Input "input_ids" int64 [batch, sequence], output "logits" [batch, sequence, 96].
    """
    sizes = transformer.Sizes()
    builder = _text_builder(seed, "input_ids")
    table = transformer.token_table(builder, sizes)
    hidden = transformer.position_embedding(builder, transformer.token_embedding(builder, table), sizes)
    mask = transformer.causal_mask(builder)
    for block in _names(blocks):
        normal = transformer.layer_norm(builder, hidden, f"{block}.norm1", sizes.width)
        attended = transformer.attention(builder, normal, f"{block}.attention", sizes, hidden=mask)
        hidden = builder.add("Add", attended, hidden)
        normal = transformer.layer_norm(builder, hidden, f"{block}.norm2", sizes.width)
        hidden = builder.add("Add", transformer.mlp(builder, normal, f"{block}.mlp", sizes), hidden)
    hidden = transformer.layer_norm(builder, hidden, "norm", sizes.width)
    logits = builder.add("MatMul", hidden, builder.add("Transpose", table, perm=[1, 0]), name="head")
    return _model(builder, "tiny_gpt", seed, {logits: "logits"}, kind="causal-lm")


def tiny_llama(*, seed: int = 0, blocks: int = 2) -> Model:
    """Return a causal language model with grouped queries (4 on 2), rotary positions, gated MLPs and RMS norms.

    Input "input_ids" int64 [batch, sequence], output "logits" [batch, sequence, 96].
    """
    sizes = transformer.Sizes(heads=4, kv_heads=2)
    builder = _text_builder(seed, "input_ids")
    hidden = transformer.token_embedding(builder, transformer.token_table(builder, sizes))
    mask, rotary = transformer.causal_mask(builder), transformer.rotary_tables(builder, sizes)
    for block in _names(blocks):
        normal = transformer.rms_norm(builder, hidden, f"{block}.norm1", sizes.width)
        attended = transformer.attention(builder, normal, f"{block}.attention", sizes, hidden=mask, rotary=rotary)
        hidden = builder.add("Add", hidden, attended)
        normal = transformer.rms_norm(builder, hidden, f"{block}.norm2", sizes.width)
        hidden = builder.add("Add", hidden, transformer.gated_mlp(builder, normal, f"{block}.mlp", sizes))
    hidden = transformer.rms_norm(builder, hidden, "norm", sizes.width)
    logits = builder.add("MatMul", hidden, builder.weight("head.weight", sizes.width, sizes.tokens), name="head")
    return _model(builder, "tiny_llama", seed, {logits: "logits"}, kind="causal-lm")


def tiny_quantized(*, seed: int = 0) -> Model:
    """Return a network that arrives quantized: weights are int8 codes, activations pass Q/DQ pairs.

    Input "x" [batch, 16], output "y" [batch, 8].
    """
    builder = GraphBuilder(seed=seed, x=("batch", 16))
    generator = np.random.default_rng(seed)
    value, zero = "x", builder.number(0, np.int8)
    for layer, (inner, outer) in enumerate(((16, 32), (32, 8))):
        scale = builder.number(0.05)
        codes = builder.add("QuantizeLinear", value, scale, zero)
        rounded = builder.add("DequantizeLinear", codes, scale, zero)
        weight = builder.constant(f"codes{layer}", generator.integers(-127, 128, (inner, outer)).astype(np.int8))
        scales = builder.constant(f"scales{layer}", generator.uniform(0.001, 0.003, outer).astype(np.float32))
        weight = builder.add("DequantizeLinear", weight, scales, axis=1)
        value = builder.add("MatMul", rounded, weight, name=f"product{layer}")
        value = builder.add("Add", value, builder.weight(f"bias{layer}", outer))
        value = value if layer else builder.add("Relu", value)
    return _model(builder, "tiny_quantized", seed, {value: "y"})


def tiny_external(directory: Path, *, seed: int = 0) -> Model:
    """Return an MLP whose weights stand in a file of their own, below `directory`, and are read when they are used.

    Input "x" [batch, 32], output "y" [batch, 8].
    """
    builder = GraphBuilder(seed=seed, x=("batch", 32))
    wide = builder.add("Relu", builder.linear("x", "up", 32, 64))
    made = _model(builder, "tiny_external", seed, {builder.linear(wide, "down", 64, 8): "y"})
    return Model.load(made.save(directory / "tiny_external", external_data=True))


def tiny_dynamic(*, seed: int = 0) -> Model:
    """Return a network no size of which is fixed but channels: it computes the targets of Reshape from shapes.

    Input "image" [batch, 3, height, width], output "y" [batch, positions, 8].
    """
    builder = GraphBuilder(seed=seed, image=("batch", 3, "height", "width"))
    features = builder.add("Relu", builder.conv("image", "stem", 3, 16, kernel=3, pads=[1, 1, 1, 1]))
    sizes = builder.add("Shape", features)
    batch = builder.add("Gather", sizes, builder.integers(0), axis=0)
    shape = builder.add("Concat", batch, builder.integers(16, -1), axis=0)
    rows = builder.add("Transpose", builder.add("Reshape", features, shape), perm=[0, 2, 1])
    wide = builder.add("Relu", builder.linear(rows, "up", 16, 32))
    return _model(builder, "tiny_dynamic", seed, {builder.linear(wide, "down", 32, 8): "y"})


def tiny_branches(*, seed: int = 0) -> Model:
    """Return a network with an If: both branches multiply, one with a weight of the outer graph, one with its own.

    Input "x" [batch, 16], output "y" [batch, 16].
    """
    builder = GraphBuilder(seed=seed, x=("batch", 16))
    hidden = builder.add("Relu", builder.linear("x", "first", 16, 16))
    outer = builder.weight("outer.weight", 16, 16)
    total = builder.add("ReduceSum", "x", keepdims=0)
    positive = builder.add("Greater", total, builder.number(0.0))
    own = np.random.default_rng(seed).normal(0, 0.3, (16, 16)).astype(np.float32)
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("MatMul", [hidden, outer], ["then_y"], name="then.product")],
        "then",
        [],
        [value("then_y", TensorProto.FLOAT, ["batch", 16])],
    )
    otherwise = helper.make_graph(
        [helper.make_node("MatMul", [hidden, "inner.weight"], ["else_y"], name="else.product")],
        "else",
        [],
        [value("else_y", TensorProto.FLOAT, ["batch", 16])],
        [onnx.numpy_helper.from_array(own, "inner.weight")],
    )
    made = builder.add("If", positive, name="branch", then_branch=then, else_branch=otherwise)
    return _model(builder, "tiny_branches", seed, {made: "y"})


def tiny_bare(*, seed: int = 0) -> Model:
    """Return a graph without a single weight: input "x" [batch, 8], output "y", the softmax of its squares."""
    builder = GraphBuilder(seed=seed, x=("batch", 8))
    return _model(builder, "tiny_bare", seed, {builder.add("Softmax", builder.add("Mul", "x", "x"), axis=-1): "y"})


TINY_MODELS: Mapping[str, Callable[[], Model]] = {
    "mlp": tiny_mlp,
    "cnn": tiny_cnn,
    "bert": tiny_bert,
    "vit": tiny_vit,
    "gpt": tiny_gpt,
    "llama": tiny_llama,
    "quantized": tiny_quantized,
    "dynamic": tiny_dynamic,
    "branches": tiny_branches,
    "bare": tiny_bare,
}
"""Every tiny model that needs no directory, by name."""


def tiny_models(directory: Path) -> dict[str, Model]:
    """Return one tiny model of each family, by name.

    Args:
        directory: Holds the weights of the model with external data, for as long as it is used.
    """
    return {name: make() for name, make in TINY_MODELS.items()} | {"external": tiny_external(directory)}


def _names(blocks: int) -> list[str]:
    return [f"block{number}" for number in range(blocks)]


def _relu6(builder: GraphBuilder, source: str) -> str:
    return builder.add("Clip", source, builder.number(0.0), builder.number(6.0))


def _text_builder(seed: int, *names: str) -> GraphBuilder:
    builder = GraphBuilder(seed=seed)
    for name in names:
        builder.input(name, ("batch", "sequence"), TensorProto.INT64)
    return builder


def _model(builder: GraphBuilder, name: str, seed: int, outputs: Mapping[str, str], *, kind: str = "generic") -> Model:
    """Return what was built, with its outputs renamed."""
    made = builder.finish(*outputs)
    for value in made.graph.outputs:
        value.name = outputs[str(value.name)]
    made.graph.opset_imports.pop("custom", None)
    return Model(made, Task(kind=kind), Provenance(name, "testing", f"seed {seed}"))
