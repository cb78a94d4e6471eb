"""The example that exports a decoder with a cache: blocks go with their slots, and decoding equals the full forward."""

import runpy
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.folding.folding_models import remove_with_notes

from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.cache import find_caches
from edgesmith.model import Model, Provenance
from edgesmith.task import Task

EXAMPLE = Path(__file__).parents[2] / "examples" / "decoder" / "export.py"


@pytest.mark.slow
def test_the_exported_decoder_equals_its_source_and_loses_slots_with_blocks(tmp_path, request):
    if "slow" not in request.config.option.markexpr:
        pytest.skip("torch takes long to export; run `pytest -m slow`")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=4)
    source = transformers.AutoModelForCausalLM.from_config(config).eval()
    source.save_pretrained(tmp_path / "source")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(EXAMPLE))["export"](str(tmp_path / "source"), tmp_path / "decoder.onnx")
    graph = ir.from_proto(onnx.load(tmp_path / "decoder.onnx"))
    model = Model(graph, Task(kind="causal-lm"), Provenance("decoder", "onnx", "example"))
    assert len(find_caches(model.ir)) == 4
    tokens = np.random.default_rng(0).integers(0, 96, (2, 9))
    with torch.no_grad():
        expected = source(torch.from_numpy(tokens)).logits.numpy()
    # Sums of up to 64 products of float32 in another order, of logits below 1.
    np.testing.assert_allclose(decoded(model, tokens), expected, atol=1e-5)
    removed, notes = remove_with_notes(model, blocks=(0,), compensation="none")
    assert [cache.input.name for cache in find_caches(removed.ir)] == [
        "past_key_values.1.key",
        "past_key_values.1.value",
    ]
    assert any("past_key_values.0.key, present.0.key" in remark for remark in notes.remarks)
    assert decoded(removed, tokens).shape == expected.shape


def decoded(model, tokens):
    """Return the logits of tokens that come in three parts, each on the cache of those before."""
    session, slots = ReferenceSession(model.ir), {c.input.name: c.output.name for c in find_caches(model.ir)}
    caches, parts = {name: np.zeros((len(tokens), 2, 0, 8), np.float32) for name in slots}, []
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        mask = np.ones((len(tokens), stop), np.int64)
        outputs = session.run({"input_ids": tokens[:, start:stop], "attention_mask": mask, **caches})
        caches = {name: outputs[slot] for name, slot in slots.items()}
        parts.append(outputs["logits"])
    return np.concatenate(parts, axis=1)
