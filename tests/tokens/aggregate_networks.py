"""Vision transformers over any grid of patches, and a short way to aggregate their tokens."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from tests.small_graphs import context

from edgesmith.graph.edit import GraphEditor
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith.testing import transformer
from edgesmith.testing.builder import GraphBuilder
from edgesmith_tokens.aggregate_tokens import AggregateTokens
from edgesmith_tokens.options.aggregation import AggregateTokensOptions

PATCH, WIDTH, CLASSES = 2, 16, 4
Head = Literal["class", "mean", "tokens"]


def vision(
    rows: int = 4,
    columns: int = 4,
    *,
    blocks: int = 6,
    front: int = 1,
    head: Head = "class",
    alike: tuple[int, int] = (1, 1),
    seed: int = 0,
) -> Model:
    """Return a vision transformer of patches of 2 x 2 pixels; input "pixels" [batch, 3, 2 rows, 2 columns].

    Args:
        rows: Rows of patches.
        columns: Columns of patches.
        blocks: Number of blocks.
        front: Learned tokens in front of the patches.
        head: What is read in the end: the first token, the mean of the patches, or all tokens.
        alike: Sides of cells of patches that share one position.
        seed: Seed of the weights.
    """
    sizes = transformer.Sizes(width=WIDTH, heads=2, kv_heads=2, hidden=24)
    builder = GraphBuilder(seed=seed, pixels=("batch", 3, rows * PATCH, columns * PATCH))
    patches = builder.conv("pixels", "patches", 3, WIDTH, kernel=PATCH, strides=[PATCH, PATCH])
    flat = builder.add("Reshape", patches, builder.integers(0, 0, -1))
    hidden = builder.add("Transpose", flat, perm=[0, 2, 1])
    if front:
        batch = builder.add("Shape", "pixels", start=0, end=1)
        shape = builder.add("Concat", batch, builder.integers(front, WIDTH), axis=0)
        tokens = builder.add("Expand", builder.weight("class.token", 1, front, WIDTH), shape)
        hidden = builder.add("Concat", tokens, hidden, axis=1)
    generator = np.random.default_rng(seed)
    cells = generator.normal(0, 0.3, (-(-rows // alike[0]), -(-columns // alike[1]), WIDTH))
    spread = cells.repeat(alike[0], 0)[:rows].repeat(alike[1], 1)[:, :columns].reshape(-1, WIDTH)
    positions = np.concatenate([generator.normal(0, 0.3, (front, WIDTH)), spread])[None]
    hidden = builder.add("Add", hidden, builder.constant("positions", positions.astype(np.float32)))
    for number in range(blocks):
        name = f"block{number}"
        normal = transformer.layer_norm(builder, hidden, f"{name}.norm1", WIDTH)
        hidden = builder.add("Add", transformer.attention(builder, normal, f"{name}.attention", sizes), hidden)
        normal = transformer.layer_norm(builder, hidden, f"{name}.norm2", WIDTH)
        hidden = builder.add("Add", transformer.mlp(builder, normal, f"{name}.mlp", sizes), hidden)
    hidden = transformer.layer_norm(builder, hidden, "norm", WIDTH)
    if head == "tokens":
        return _model(builder, hidden)
    if head == "mean":
        first = builder.add("ReduceMean", hidden, builder.integers(1), keepdims=0)
    else:
        first = builder.add("Gather", hidden, builder.number(0, np.int64), axis=1)
    return _model(builder, builder.linear(first, "head", WIDTH, CLASSES))


def images(model: Model, count: int = 6, seed: int = 0, alike: tuple[int, int] = (1, 1)) -> dict[str, np.ndarray]:
    """Return random images, in which cells of patches hold the same pixels."""
    _, _, height, width = model.graph.inputs[0].shape
    rows, columns = int(height) // PATCH, int(width) // PATCH
    sizes = (count, 3, -(-rows // alike[0]), PATCH, -(-columns // alike[1]), PATCH)
    cells = np.random.default_rng(seed).normal(0, 1, sizes)
    patches = cells.repeat(alike[0], 2)[:, :, :rows].repeat(alike[1], 4)[:, :, :, :, :columns]
    return {"pixels": patches.reshape(count, 3, int(height), int(width)).astype(np.float32)}


def aggregate(model: Model, data: Mapping[str, np.ndarray] | None = None, **options: Any) -> Model:
    return aggregate_with_notes(model, data, **options)[0]


def aggregate_with_notes(
    model: Model, data: Mapping[str, np.ndarray] | None = None, **options: Any
) -> tuple[Model, list[str]]:
    settings = context(AggregateTokensOptions(**options), data)
    verdict = AggregateTokens().check(model, settings)
    assert verdict.status == "ok", verdict.reason
    return AggregateTokens().apply(model, settings), settings.notes.remarks


def verdict(model: Model, data: Mapping[str, np.ndarray] | None = None, **options: Any) -> Any:
    return AggregateTokens().check(model, context(AggregateTokensOptions(**options), data))


def half(model: Model) -> Model:
    """Return a copy that computes in float16 between casts behind its input and before its output."""
    proto = ir.to_proto(model.ir)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for tensor in proto.graph.initializer:
        if weights[tensor.name].dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].astype(np.float16), tensor.name))
    source, result = proto.graph.input[0].name, proto.graph.output[0].name
    for node in proto.graph.node:
        if node.op_type == "Conv":
            node.input[0] = f"{source}.half"
        node.output[:] = [f"{name}.half" if name == result else name for name in node.output]
    to_half = helper.make_node("Cast", [source], [f"{source}.half"], "to_half", to=TensorProto.FLOAT16)
    proto.graph.node.insert(0, to_half)
    proto.graph.node.append(helper.make_node("Cast", [f"{result}.half"], [result], "to_full", to=TensorProto.FLOAT))
    del proto.graph.value_info[:]
    return model.with_ir(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def older(model: Model, opset: int) -> Model:
    """Return a copy in an opset without LayerNormalization and Gelu: it has none of the one, and Relu for the other."""
    copy = model.clone()
    editor = GraphEditor(copy.graph)
    for node in list(copy.graph):
        if node.op_type == "LayerNormalization":
            editor.bypass(node)
        elif node.op_type == "Gelu":
            node.op_type = "Relu"
    copy.graph.opset_imports[""] = opset
    return copy


def _model(builder: GraphBuilder, output: str) -> Model:
    return Model(builder.finish(output), Task(), Provenance("vision", "test", "1"))
