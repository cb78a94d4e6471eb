"""Small vision transformers, variants of them, and short ways to merge their tokens."""

from typing import Any

import numpy as np
import onnx_ir as ir
from tests.small_graphs import context, run

from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.structure import find_structure
from edgesmith.model import Model
from edgesmith.testing.models import tiny_vit
from edgesmith_tokens.finding.vision import VisionStream, find_vision_streams
from edgesmith_tokens.merge_tokens import MergeTokens
from edgesmith_tokens.options.merging import MergeTokensOptions


def images(count: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    return {"pixel_values": np.random.default_rng(seed).normal(0, 1, (count, 3, 32, 32)).astype(np.float32)}


def vision(model: Model) -> VisionStream:
    (stream,) = find_vision_streams(model.ir, find_structure(model.ir))
    return stream


def merge(model: Model, **options: Any) -> Model:
    return MergeTokens().apply(model, context(MergeTokensOptions(**options)))


def accepted(model: Model, **options: Any) -> bool:
    return MergeTokens().check(model, context(MergeTokensOptions(**options))).status == "ok"


def refusal(model: Model, **options: Any) -> str:
    verdict = MergeTokens().check(model, context(MergeTokensOptions(**options)))
    assert verdict.status == "refuse", verdict
    return verdict.reason


def pooling_vit(blocks: int = 3) -> Model:
    """A ViT whose classifier reads the mean over all tokens."""
    model = tiny_vit(blocks=blocks)
    editor = GraphEditor(model.graph)
    select = next(node for node in model.graph if node.op_type == "Gather")
    axes = editor.add_initializer("pooled", np.array([1]))
    mean = editor.insert_before(select, "ReduceMean", (select.inputs[0], axes), {"keepdims": 0})
    editor.take_over(select, mean.outputs[0])
    return model


def vit_with_registers(registers: int, blocks: int = 2) -> Model:
    """A ViT with a class token and further learned tokens in front of its patches."""
    model = tiny_vit(blocks=blocks)
    generator = np.random.default_rng(3)
    for name, axis in (("class.token", 1), ("positions", 1)):
        value = model.graph.initializers[name]
        array = value.const_value.numpy()
        more = generator.normal(0, 0.3, (1, registers, array.shape[-1])).astype(np.float32)
        longer = np.concatenate([more, array], axis=axis)
        value.const_value, value.shape = ir.tensor(longer, name=name), ir.Shape(longer.shape)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and 17 in tuple(value.shape):
                value.shape = ir.Shape([size + registers if size == 17 else size for size in value.shape])
    return model


def before_softmax(model: Model, array: np.ndarray, op_type: str = "Add", block: int = 1) -> Model:
    """A copy in which something is added to the scores of one block."""
    copy = model.clone()
    name = vision(copy).blocks[block].attention.softmax
    node = next(each for each in copy.graph if each.name == name)
    editor = GraphEditor(copy.graph)
    table = editor.add_initializer("table", array.astype(np.float32))
    added = editor.insert_before(node, op_type, (node.inputs[0], table), name="table_added").outputs[0]
    added.shape, added.type = node.inputs[0].shape, node.inputs[0].type
    node.replace_input_with(0, added)
    return copy


def taps(model: Model, inputs: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    from edgesmith.execution.reference import ReferenceSession

    return ReferenceSession(model.ir, taps=names).run(inputs)


def merged_value(model: Model, stream: VisionStream, block: int) -> str:
    """The name of what the stream holds behind the merge of a block: what its MLP is added to."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    node = values[stream.blocks[block].output].producer()
    branch = stream.blocks[block].block.residuals[1].branch
    return next(value.name for value in node.inputs if value.name != branch)


def size_values(model: Model) -> list[str]:
    """The names of the sizes that attention is weighed by, in order."""
    return [node.inputs[0].name for node in model.graph if node.op_type == "Log"]


def same(first: Model, second: Model, inputs: dict[str, np.ndarray]) -> bool:
    left, right = run(first, inputs), run(second, inputs)
    return all(np.array_equal(left[name], right[name]) for name in left)
