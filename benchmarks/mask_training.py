"""Masks drawn at random, tried and trained, against the largest weights with as many updates in all.

Drawn masks cost updates that choose between them, so the honest rival is iterative magnitude pruning that spends those
on training. MiniLM-L6 on Reuters R8; training texts are of the training part, all rows of a seed see the same, and
accuracy is that on the test part.

Run `python -m benchmarks.mask_training`; results also go to build/bench/mask_training.json.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.models.case import MissingDataError
from benchmarks.models.minilm import minilm_r8, reuters_tokens
from benchmarks.sparsity import cell, measure

OUT = Path("build/bench/mask_training.json")
CANDIDATES = 4


def rows(sparsity: float, steps: int, check_steps: int) -> dict[str, dict[str, Any]]:
    """Return the options of each row."""
    common = {"sparsity": sparsity, "batch_size": 8, "samples": 100_000}
    drawn = {"criterion": "randomized", "candidates": CANDIDATES, "check_steps": check_steps, "training_steps": steps}
    largest = {"criterion": "magnitude", **common}
    return {
        f"{CANDIDATES} drawn masks": {**common, **drawn},
        "largest weights, as many updates of each choice": {**largest, "training_steps": steps},
        "largest weights, as many updates in all": {**largest, "training_steps": steps + CANDIDATES * check_steps},
    }


def main() -> int:
    """Print one row for each way and return 1 if the case is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=60, help="updates of each choice, in each of four stages")
    parser.add_argument("--check-steps", type=int, default=20, help="updates to try each drawn mask with")
    parser.add_argument("--texts", type=int, default=640, help="training texts; each seed draws three quarters")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that training texts are cut to")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, help="evaluation samples; none: all")
    arguments, console = parser.parse_args(), Console()
    try:
        case = minilm_r8()
    except MissingDataError as error:
        console.print(str(error))
        return 1
    title = f"{case.name}, {arguments.sparsity:.0%} zeros"
    table = Table("weights", "accuracy, %", "SQNR, dB", "seconds", title=title)
    results: dict[str, Any] = {"arguments": vars(arguments)}
    with tempfile.TemporaryDirectory() as folder:
        texts = reuters_tokens("train")
        chosen = np.random.default_rng(1).permutation(len(texts.pop("labels")))[: arguments.texts]
        training = Path(folder) / "training.npz"
        np.savez(training, **{name: array[chosen, : arguments.tokens] for name, array in texts.items()})
        trained = replace(case, calibration=training)
        for name, options in rows(arguments.sparsity, arguments.steps, arguments.check_steps).items():
            found = [measure(trained, options, seed, arguments.samples) for seed in range(arguments.seeds)]
            results[name] = found
            OUT.parent.mkdir(parents=True, exist_ok=True)
            OUT.write_text(json.dumps(results, indent=2))
            table.add_row(name, cell(found, "accuracy_percent"), cell(found, "sqnr_db", 1), cell(found, "seconds", 0))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
