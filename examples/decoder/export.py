"""Writes a causal language model as ONNX with a cache of keys and values, which Edgesmith's own export leaves out.

Run it as `python examples/decoder/export.py MODEL --out decoder.onnx`; MODEL is a directory or an id of Hugging Face.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel


class Decoder(torch.nn.Module):
    """A language model whose cache is a flat list: keys and values of the first block, then of the second."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return the logits of the new tokens, and the cache with them."""
        cache = DynamicCache(list(zip(past[0::2], past[1::2], strict=True)))
        found = self.model(input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        return found.logits, *(part for layer in found.past_key_values.layers for part in (layer.keys, layer.values))


def export(source: str, out: Path) -> None:
    """Write the decoder; batch, new and earlier tokens stay open. The mask covers both kinds of tokens."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    slots = [f"{number}.{part}" for number in range(config.num_hidden_layers) for part in ("key", "value")]
    before, after = ([f"{stem}.{slot}" for slot in slots] for stem in ("past_key_values", "present"))
    past = [torch.zeros(2, heads, 3, width) for _ in slots]
    axes = {"input_ids": {0: "batch", 1: "new"}, "attention_mask": {0: "batch", 1: "all"}}
    axes |= {"logits": {0: "batch", 1: "new"}}
    axes |= {name: {0: "batch", 2: "past"} for name in before} | {name: {0: "batch", 2: "all"} for name in after}
    torch.onnx.export(
        Decoder(model),
        (torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 8, dtype=torch.long), *past),
        out,
        input_names=["input_ids", "attention_mask", *before],
        output_names=["logits", *after],
        dynamic_axes=axes,
        opset_version=18,
        dynamo=False,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, default=Path("decoder.onnx"))
    arguments = parser.parse_args()
    export(arguments.source, arguments.out)
