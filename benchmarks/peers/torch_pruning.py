"""Torch-Pruning on MobileNetV2, batch normalization estimated anew: `python -m benchmarks.peers.torch_pruning`.

Runs in the peers' environment and answers its parent as the other children do. The ratio is searched so that the
share of MACs is met, since the tool takes a share of channels. Rounded widths
are for ONNX Runtime, whose fast kernels take multiples of 16; the same share everywhere is too coarse for them.
"""

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

from benchmarks.measuring import THREADS, answer_parent, peak_bytes
from benchmarks.models.mobilenet import mobilenet_module

SETTINGS: dict[str, dict[str, Any]] = {
    "L2": {"importance": "magnitude", "global_pruning": False},
    "Taylor": {"importance": "taylor", "global_pruning": False},
    "global L2": {"importance": "magnitude", "global_pruning": True},
    "global L2, widths of 16": {"importance": "magnitude", "global_pruning": True, "round_to": 16},
}
HALVINGS, BATCH = 8, 25


def child_prune(request: Mapping[str, Any]) -> dict[str, Any]:
    """Prune, re-estimate batch normalization and export; return time and peak memory."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(request["seed"])
    with np.load(request["data"]) as archive:
        photos, labels = torch.from_numpy(archive["image"]), torch.from_numpy(archive["labels"])
    module = mobilenet_module(Path(request["weights"]))
    started = time.perf_counter()
    setting = SETTINGS[request["setting"]]
    gradients = _gradients(module, photos, labels) if setting["importance"] == "taylor" else {}
    low, high = 0.0, 0.9
    pruned = module
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = _pruned(module, gradients, setting, middle, photos[:1])
        if _macs(tried, photos[:1]) <= (1 - request["share"]) * _macs(module, photos[:1]):
            pruned, high = tried, middle
        else:
            low = middle
    _estimate_norms(pruned, photos)
    seconds = time.perf_counter() - started
    dynamic = {"image": {0: torch.export.Dim("batch")}}
    program = torch.onnx.export(
        pruned, (photos[:2],), input_names=["image"], dynamic_shapes=dynamic, dynamo=True, verbose=False
    )
    program.save(request["file"])
    return {"seconds": seconds, "peak_bytes": peak_bytes()}


def _gradients(module: nn.Module, photos: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return gradients of the cross entropy on all calibration photos, by parameter."""
    module.zero_grad()
    for start in range(0, len(photos), BATCH):
        logits = module(photos[start : start + BATCH])
        functional.cross_entropy(logits, labels[start : start + BATCH], reduction="sum").backward()
    found = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    module.zero_grad()
    return found


def _pruned(
    module: nn.Module, gradients: Mapping[str, torch.Tensor], setting: Mapping[str, Any], ratio: float, example: Any
) -> nn.Module:
    result = copy.deepcopy(module)
    for name, weight in result.named_parameters():
        weight.grad = gradients[name].clone() if name in gradients else None
    importance = {"magnitude": tp.importance.MagnitudeImportance(p=2), "taylor": tp.importance.TaylorImportance()}
    head = [layer for layer in result.modules() if isinstance(layer, nn.Linear)]
    tp.pruner.BasePruner(
        result,
        example,
        importance=importance[setting["importance"]],
        global_pruning=setting["global_pruning"],
        pruning_ratio=ratio,
        ignored_layers=head,
        round_to=setting.get("round_to"),
    ).step()
    result.zero_grad()
    return result


def _macs(module: nn.Module, example: torch.Tensor) -> float:
    macs, _ = tp.utils.count_ops_and_params(module, example)
    return float(macs)


def _estimate_norms(module: nn.Module, photos: torch.Tensor) -> None:
    """Set statistics of batch normalization to the mean over batches of the calibration photos."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    with torch.no_grad():
        for start in range(0, len(photos), BATCH):
            module(photos[start : start + BATCH])
    module.eval()


if __name__ == "__main__":
    answer_parent({"prune": child_prune})
