"""Small convolutional networks for the tests of pruning, in torch."""

import torch
from torch import nn


class Inverted(nn.Module):
    """An inverted residual: expansion, depthwise, projection, sum."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Basic(nn.Module):
    """A basic residual: two 3 x 3 convolutions, and a strided projection beside them."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, hidden, 3, 2, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(hidden, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.beside = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.first(x)) + self.beside(x))


class Grouped(nn.Module):
    """A bottleneck with a grouped convolution in the middle."""

    def __init__(self, channels: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def _network(*blocks: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)
    )


NETWORKS = {
    "inverted": lambda: _network(Inverted(8, 24), Inverted(8, 16), channels=8),
    "basic": lambda: _network(Basic(8, 12, 10), channels=10),
    "grouped": lambda: _network(Grouped(8, 16, 4), channels=8),
}
IMAGE = (3, 16, 16)
