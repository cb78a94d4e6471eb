"""Decoders with caches as torch exports them, by both of its exporters."""

import io
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.folding.folding_models import remove_with_notes
from tests.small_graphs import context

from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.cache import find_caches
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith_folding.options.sharing import ShareBlocksOptions
from edgesmith_folding.share_blocks import ShareBlocks

BLOCKS, HEADS, WIDTH = 3, 2, 8


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_folding_keeps_cached_decoding_equal_to_the_full_forward(kind, dynamo, request):
    if "slow" not in request.config.option.markexpr:
        pytest.skip("torch takes long to export; run `pytest -m slow`")
    model = exported(kind, dynamo)
    assert len(find_caches(model.ir)) == 2 * BLOCKS
    removed, _ = remove_with_notes(model, blocks=(0,), compensation="none")
    assert len(find_caches(removed.ir)) == 2 * (BLOCKS - 1)
    settings = context(ShareBlocksOptions(groups=((0, 1),), weights="first"))
    folded = ShareBlocks().apply(removed, settings)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 12))
    session = ReferenceSession(folded.ir)
    slots = {cache.input.name: cache.output.name for cache in find_caches(folded.ir)}
    empty = {name: np.zeros((2, HEADS, 0, WIDTH), np.float32) for name in slots}
    whole = session.run({"input_ids": tokens, "attention_mask": np.ones_like(tokens), **empty})["logits"]
    caches, parts = empty, []
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 12)):
        fed = {"input_ids": tokens[:, start:stop], "attention_mask": np.ones((2, stop), np.int64), **caches}
        outputs = session.run(fed)
        caches = {name: outputs[slot] for name, slot in slots.items()}
        parts.append(outputs["logits"])
    # Sums of up to 64 products of float32 in another order, of logits below 1.
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def exported(kind: str, dynamo: bool) -> Model:
    """Return a random decoder with inputs and outputs for keys and values, under names of its own."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "llama":
        sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": HEADS}
        config = transformers.LlamaConfig(**sizes, num_hidden_layers=BLOCKS, num_attention_heads=4)
    else:
        config = transformers.GPT2Config(vocab_size=96, n_embd=16, n_layer=BLOCKS, n_head=HEADS, n_positions=64)
    config._attn_implementation = "eager"
    inner = transformers.AutoModelForCausalLM.from_config(config).eval()

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask, *past):
            cache = transformers.DynamicCache(list(zip(past[0::2], past[1::2], strict=True)))
            found = self.inner(input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
            present = [part for layer in found.past_key_values.layers for part in (layer.keys, layer.values)]
            return found.logits, *present

    past = [torch.randn(2, HEADS, 3, WIDTH) for _ in range(2 * BLOCKS)]
    inputs = (torch.randint(0, 96, (2, 5)), torch.ones(2, 8, dtype=torch.long), *past)
    before, after = ([f"{word}_{index}" for index in range(2 * BLOCKS)] for word in ("old", "new"))
    names = {"input_names": ["input_ids", "attention_mask", *before], "output_names": ["logits", *after]}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            auto = torch.export.Dim.AUTO
            axes = ({0: auto, 1: auto}, {0: auto, 1: auto}, tuple({0: auto, 2: auto} for _ in past))
            torch.onnx.export(Decoder(), inputs, buffer, dynamo=True, dynamic_shapes=axes, verbose=False, **names)
        else:
            open_axes = {"input_ids": {0: "batch", 1: "new"}, "attention_mask": {0: "batch", 1: "all"}}
            open_axes |= {name: {0: "batch", 2: "past"} for name in before}
            open_axes |= {name: {0: "batch", 2: "all"} for name in after} | {"logits": {0: "batch", 1: "new"}}
            torch.onnx.export(
                Decoder(), inputs, buffer, dynamo=False, dynamic_axes=open_axes, opset_version=18, **names
            )
    proto = onnx.load_from_string(buffer.getvalue())
    return Model(ir.from_proto(proto), Task(kind="causal-lm"), Provenance(kind, "torch", "random"))
