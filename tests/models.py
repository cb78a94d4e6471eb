"""Small random models for tests: exported once per set of library versions, then read from disk.

Use the fixtures of `tests/conftest.py` (`tiny_bert`, `tiny_cnn`, ...). Weights come from a fixed seed and are far
from degenerate (biases and norms are random too), so that no two parameters are equal by accident.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import edgesmith.frontends
from edgesmith.model import Model

CACHE = Path(os.environ.get("EDGESMITH_TEST_CACHE", Path(__file__).parent.parent / "build" / "test-models"))
_LIBRARIES = ("torch", "transformers", "onnxscript", "onnx_ir", "onnx", "onnxruntime")


def cached_model(name: str, build: Callable[[], Model]) -> Model:
    """Return the model that `build` makes, from disk if this code and these libraries made it before.

    Processes that ask at the same time wait for one of them.
    """
    frontends = Path(edgesmith.frontends.__path__[0])
    sources = [*sorted(frontends.glob("*.py")), frontends.parent / "serialization.py", Path(__file__)]
    parts = [file.read_text() for file in sources] + [version(library) for library in _LIBRARIES]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    directory = CACHE / f"{name}-{key[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.is_dir():
            build().save(directory)
            for stale in CACHE.glob(f"{name}-" + "[0-9a-f]" * 16):
                if stale != directory:
                    shutil.rmtree(stale, ignore_errors=True)
    return Model.load(directory)


def tiny_bert_module() -> Any:
    """BERT: 2 blocks, width 32, 4 heads, MLP 64, 100 tokens; classifier with 3 labels."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
    )
    return _randomized(transformers.BertForSequenceClassification, config)


def tiny_distilbert_module() -> Any:
    """DistilBERT: 2 blocks, width 32, 4 heads, MLP 64; masked language model with the tied head."""
    import transformers

    config = transformers.DistilBertConfig(
        vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64
    )
    return _randomized(transformers.DistilBertForMaskedLM, config)


def tiny_vit_module() -> Any:
    """ViT: 2 blocks, width 32, 4 heads, MLP 64, 32 x 32 pixels, patches of 8; classifier with 5 labels."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    return _randomized(transformers.ViTForImageClassification, config)


def tiny_dinov2_module() -> Any:
    """DINOv2: 2 blocks with layer scale, width 32, 4 heads, 32 x 32 pixels, patches of 8; features."""
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=32, patch_size=8
    )
    return _randomized(transformers.Dinov2Model, config)


def tiny_gpt2_module() -> Any:
    """GPT-2: 2 blocks, width 32, 4 heads, fused q/k/v, causal, tied head, 100 tokens."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return _randomized(transformers.GPT2LMHeadModel, config)


def tiny_llama_module() -> Any:
    """Llama: 2 blocks, width 32, 4 query heads on 2 key/value heads, gated MLP 64, rotary positions, untied head."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    return _randomized(transformers.LlamaForCausalLM, config)


def build_tiny_cnn() -> Model:
    """A residual network on 3 x 16 x 16 images: inverted bottleneck with depthwise Conv, skip, pooling, 4 logits."""
    import torch

    from edgesmith.frontends.torch_module import TorchModuleFrontend

    torch.manual_seed(0)
    module = _tiny_cnn_module()
    randomize(module)
    return TorchModuleFrontend().load(module, example_inputs={"image": torch.randn(2, 3, 16, 16)})


def export(model_class: Any, config: Any) -> Model:
    """Return the Model of a randomly initialised `transformers` class, through a saved directory as users have it."""
    return export_module(_randomized(model_class, config))


def export_module(module: Any) -> Model:
    """Return the Model of a `transformers` module, through a saved directory as users have it."""
    from edgesmith.frontends.transformers import TransformersFrontend

    with tempfile.TemporaryDirectory() as directory:
        module.save_pretrained(directory)
        return TransformersFrontend().load(directory)


def _randomized(model_class: Any, config: Any) -> Any:
    """Return a module in evaluation mode, the same on every call."""
    import torch

    torch.manual_seed(0)
    module = model_class(config).eval()
    randomize(module)
    return module


def randomize(module: Any) -> None:
    """Give biases, norms and statistics random values around what they start from, so that none are equal."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def _tiny_cnn_module() -> Any:
    from torch import nn

    class TinyCnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
            )
            self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
            self.depthwise = nn.Sequential(
                nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6()
            )
            self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
            self.last = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(16, 4)

        def forward(self, image: Any) -> dict[str, Any]:
            hidden = self.stem(image)
            hidden = hidden + self.project(self.depthwise(self.expand(hidden)))
            return {"logits": self.classifier(self.pool(self.last(hidden)).flatten(1))}

    return TinyCnn()
