"""Recovery in whole runs: behind pruning and before quantization, behind quantization, and after a kill."""

import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from tests.pipeline.conftest import Job, job  # noqa: F401 - a fixture
from tests.pipeline.test_robustness import settings

import edgesmith

PRUNE = {"method": "prune-structure", "options": {"ratio": 0.5, "score": "magnitude", "refit": "none"}}
RECOVER = {
    "method": "recover",
    "options": {"epochs": 6, "batch_size": 8, "learning_rate": 1e-3, "labels_weight": 0.0},
}
KILLED = """
import os, signal, sys
from edgesmith.cli import main
from edgesmith_recovery.training.checkpoint import Checkpoint

save = Checkpoint.save

def saved(checkpoint, *state):
    save(checkpoint, *state)
    os.kill(os.getpid(), signal.SIGKILL)

Checkpoint.save = saved
sys.exit(main(sys.argv[1:]))
"""
"""A command that kills itself once the state of a training is on disk."""
INT8 = {"method": "quantize-int8", "options": {"mode": "static"}}


def errors(artifact: edgesmith.Artifact) -> dict[str, float]:
    """Return the distance of each stage from the source in decibels."""
    return {
        row.stage: error.sqnr_db for row in artifact.ledger.rows for error in row.errors if error.against == "source"
    }


def run(job: Job, *steps: dict, out: str = "artifact", store: str = "store") -> edgesmith.Artifact:  # noqa: F811
    chosen = replace(settings(job.folder), store=job.folder / store)
    return edgesmith.compile(job.model, out=job.folder / out, recipe={"steps": steps}, data=job.data, settings=chosen)


def test_behind_pruning_and_before_quantization(job: Job) -> None:  # noqa: F811
    artifact = run(job, PRUNE, RECOVER, INT8)
    found = errors(artifact)
    assert found["recover"] > found["prune-structure"] + 3
    assert found["quantize-int8"] > found["prune-structure"]
    rows = {row.stage: row for row in artifact.ledger.rows}
    assert rows["recover"].macs == rows["prune-structure"].macs < rows["source"].macs
    assert "held-out" in " ".join(rows["recover"].remarks)


def test_behind_quantization_the_graph_keeps_its_form(job: Job) -> None:  # noqa: F811
    int4 = {"method": "quantize-weights", "options": {"bits": 4}}
    artifact = run(job, int4, RECOVER)
    rows = {row.stage: row for row in artifact.ledger.rows}
    assert rows["recover"].size_bytes.value == pytest.approx(rows["quantize-weights"].size_bytes.value, rel=0.01)
    found = errors(artifact)
    assert found["recover"] > found["quantize-weights"] + 1


def test_behind_static_quantization_activations_stay_as_they_are_rounded(job: Job) -> None:  # noqa: F811
    artifact = run(job, INT8, RECOVER)
    found = errors(artifact)
    assert found["recover"] >= found["quantize-int8"]


def test_a_killed_recovery_ends_with_the_bytes_of_a_whole_one(job: Job) -> None:  # noqa: F811
    long = {"method": "recover", "options": {**RECOVER["options"], "patience": 100, "checkpoint_steps": 2}}
    recipe = job.folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"steps": [PRUNE, long]}))
    command = [sys.executable, "-c", KILLED, *job.arguments("--recipe", str(recipe), out="killed")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (job.folder / "killed").exists()
    unfinished = job.folder / "store" / "unfinished"
    assert len(list(unfinished.glob("*/*/training/state.safetensors"))) == 1
    resumed = run(job, PRUNE, long, out="resumed")
    assert not list(unfinished.glob("*/*"))
    expected = run(job, PRUNE, long, out="whole", store="other")
    assert resumed.entry.read_bytes() == expected.entry.read_bytes()
