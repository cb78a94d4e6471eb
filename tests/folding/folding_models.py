"""Small models with several blocks, data for them, and short ways to fold them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from tests.small_graphs import context

from edgesmith.graph.structure import find_structure
from edgesmith.model import Model
from edgesmith.testing.models import tiny_bert, tiny_gpt, tiny_llama, tiny_vit
from edgesmith_folding.options.removal import RemoveBlocksOptions
from edgesmith_folding.remove_blocks import RemoveBlocks

BLOCKS = 5
MODELS = {"bert": tiny_bert, "gpt": tiny_gpt, "llama": tiny_llama, "vit": tiny_vit}
PRE_NORM = ("gpt", "llama", "vit")


def deep(name: str, seed: int = 0) -> Model:
    return MODELS[name](seed=seed, blocks=BLOCKS)


def inputs_of(model: Model, count: int = 8, *, length: int = 12, seed: int = 1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        if value.name == "input_ids":
            arrays["input_ids"] = generator.integers(0, 96, (count, length))
        elif value.name == "attention_mask":
            arrays["attention_mask"] = np.ones((count, length), np.int64)
        else:
            arrays[str(value.name)] = generator.normal(0, 1, (count, 3, 32, 32)).astype(np.float32)
    return arrays


def remove(model: Model, data: Mapping[str, np.ndarray] | None = None, **options: Any) -> Model:
    return remove_with_notes(model, data, **options)[0]


def remove_with_notes(model: Model, data: Mapping[str, np.ndarray] | None = None, **options: Any) -> tuple[Model, Any]:
    settings = context(RemoveBlocksOptions(**{"keep_first": 0, "keep_last": 0} | options), data)
    assert RemoveBlocks().check(model, settings).status == "ok"
    return RemoveBlocks().apply(model, settings), settings.notes


def without_effect(model: Model, blocks: tuple[int, ...]) -> Model:
    """Return a copy in which pre-norm blocks add exact zeros to the stream: the weights that end them are zero."""
    copy = model.clone()
    stems = tuple(f"block{number}.{layer}" for number in blocks for layer in ("attention.output", "mlp.down"))
    for name, value in copy.graph.initializers.items():
        if name.startswith(stems):
            value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)
    return copy


def arrays_of(model: Model) -> dict[str, bytes]:
    return {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items()}


def block_count(model: Model) -> int:
    return len(find_structure(model.ir).blocks)
