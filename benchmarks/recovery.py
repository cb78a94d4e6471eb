"""What `recover` gives back after pruning, each way of it within the same time, and LoRA on labels beside it.

Models are pruned once by `prune-structure`. Every row starts from that same graph, uses the same training samples, and
is scored on held-out data that nothing was trained, tuned or selected on. A time limit counts training and the scores
on the way, not loading.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import THREADS
from benchmarks.models import minilm_r8, smollm2
from benchmarks.models.case import Case, MissingDataError
from benchmarks.models.minilm import reuters_tokens
from benchmarks.models.smollm2 import novel_tokens

OUT = Path("build/bench/recovery")
LORA = {"parameters": "low-rank", "adapter": "lora", "keep_zeros": False, "outputs": "none", "blocks": "none"}
CLOSED = {"how": "closed-form", "samples": 128}
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A pruned model, the steps to compare, and their data."""

    case: Case
    prune: Options
    rows: Mapping[str, tuple[Options, ...]]
    """Steps by name; each is a set of options of `recover`, and those that train get the time limit."""
    training: Mapping[str, np.ndarray]
    labels: np.ndarray


def minilm_study(samples: int) -> Study:
    """MiniLM-L6 on Reuters R8, half of all heads and FFN channels removed by magnitude, without a refit."""
    arrays = reuters_tokens("train")
    chosen = np.random.default_rng(1).permutation(len(arrays["labels"]))[:samples]
    training = {name: array[chosen] for name, array in arrays.items()}
    labels = training.pop("labels")
    rows: dict[str, tuple[Options, ...]] = {
        "closed form": (CLOSED,),
        "distill all weights": ({"labels_weight": 0.0},),
        "distill low-rank updates": ({"labels_weight": 0.0, "parameters": "low-rank"},),
        "distill biases and norms": ({"labels_weight": 0.0, "parameters": "biases-and-norms"},),
        "closed form, then distill all weights": (CLOSED, {"labels_weight": 0.0}),
        "LoRA on labels": (LORA,),
    }
    return Study(minilm_r8(), {"ratio": 0.5, "score": "magnitude", "refit": "none"}, rows, training, labels)


def smollm2_study(samples: int) -> Study:
    """SmolLM2-135M, a fifth of heads and FFN channels removed; trained on novels, scored on another one."""
    tokens = novel_tokens(samples, tokens=256)
    labels = np.full_like(tokens, -100)
    labels[:, :-1] = tokens[:, 1:]
    small = {"batch_size": 1, "accumulate": 2}
    rows: dict[str, tuple[Options, ...]] = {
        "closed form": ({**CLOSED, "samples": 64, "batch_size": 1},),
        "distill all weights": ({**small, "labels_weight": 0.0, "learning_rate": 3e-5},),
        "distill low-rank updates": ({**small, "labels_weight": 0.0, "parameters": "low-rank"},),
        "distill all weights, with labels": ({**small, "learning_rate": 3e-5},),
        "distill low-rank updates, with labels": ({**small, "parameters": "low-rank"},),
        "LoRA on labels": ({**small, **LORA},),
    }
    training = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    return Study(smollm2(), {"ratio": 0.2, "samples": 16}, rows, training, labels)


STUDIES = {"minilm_r8": minilm_study, "smollm2": smollm2_study}


def score(case: Case, model: ir.Model) -> float:
    """Return accuracy in points, or perplexity, on the case's evaluation data."""
    from edgesmith.execution.reference import ReferenceSession
    from edgesmith_calibration.metrics import Accuracy, Perplexity

    session = ReferenceSession(model, optimization="all", threads=THREADS)
    metric = Accuracy() if case.metric == "accuracy" else Perplexity()
    with np.load(case.evaluation) as archive:
        arrays = dict(archive)
    labels = arrays.pop("labels", None)
    if labels is None:
        labels = np.full_like(arrays["input_ids"], -100)
        labels[:, :-1] = arrays["input_ids"][:, 1:]
    for index in range(len(labels)):
        length = int(arrays["attention_mask"][index].sum())
        feed = {name: array[index : index + 1, :length] for name, array in arrays.items()}
        own = labels[index : index + 1]
        metric.update(session.run(feed), own[:, :length] if own.ndim == 2 else own)
    return metric.result()


def run_study(study: Study, minutes: float, console: Console) -> dict[str, Any]:
    """Prune, run every row, print a table, and return the numbers."""
    from edgesmith.host.context import Context
    from edgesmith.model import Model, Provenance
    from edgesmith.task import Task
    from edgesmith_calibration.sources import ArraySource
    from edgesmith_onnxruntime.cpu import DIALECT
    from edgesmith_pruning.options.structure import PruneStructureOptions
    from edgesmith_pruning.prune_structure import PruneStructure
    from edgesmith_recovery.options.recover import RecoverOptions
    from edgesmith_recovery.recover import Recover

    case = study.case
    source = Model(ir.load(case.model), Task(), Provenance(case.name, "onnx", case.name))
    data = ArraySource(study.training, labels=study.labels)

    def context(options: Any) -> Context[Any]:
        scratch = Path(tempfile.mkdtemp())
        return Context(options, DIALECT, scratch, calibration=data, threads=THREADS, source=source)

    pruned = PruneStructure().apply(source, context(PruneStructureOptions(**study.prune)))
    unit = "accuracy, %" if case.metric == "accuracy" else "perplexity"
    found: dict[str, Any] = {"source": {"score": score(case, source.ir)}, "pruned": {"score": score(case, pruned.ir)}}
    for name, steps in study.rows.items():
        model, began, remarks = pruned, time.perf_counter(), []
        for step in steps:
            limits = {} if step.get("how") == "closed-form" else {"minutes": minutes, "steps": 1_000_000}
            at = context(RecoverOptions(**limits, **step))
            model = Recover().apply(model, at)
            remarks += at.notes.remarks
        seconds = time.perf_counter() - began
        found[name] = {"score": score(case, model.ir), "seconds": seconds, "remarks": remarks}
        console.print(name, f"{found[name]['score']:.2f}", *remarks)
    table = Table("model", unit, "seconds", title=f"{case.name}, {minutes:g} minutes of training")
    for name, row in found.items():
        table.add_row(name, f"{row['score']:.2f}", f"{row['seconds']:.0f}" if "seconds" in row else "")
    console.print(table)
    return found


def main() -> None:
    """Run the named studies and write table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=STUDIES, help="repeat for several; default: all")
    parser.add_argument("--minutes", type=float, default=30.0, help="time of each training (default: 30)")
    parser.add_argument("--samples", type=int, default=2000, help="training samples (default: 2000)")
    parser.add_argument("--row", action="append", help="run only rows of these names")
    arguments = parser.parse_args()
    console = Console()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in arguments.case or list(STUDIES):
        try:
            study = STUDIES[name](arguments.samples)
        except MissingDataError as error:
            console.print(f"{name} is left out. {error}")
            continue
        if arguments.row:
            rows = {row: steps for row, steps in study.rows.items() if row in arguments.row}
            study = Study(study.case, study.prune, rows, study.training, study.labels)
        found = run_study(study, arguments.minutes, console)
        (OUT / f"{name}.json").write_text(json.dumps({"minutes": arguments.minutes, "rows": found}, indent=2))


if __name__ == "__main__":
    main()
