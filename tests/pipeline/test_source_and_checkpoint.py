"""What a step is told of the run it belongs to: the model that the run started from, and where to leave long work."""

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import edgesmith
from edgesmith.isolation.limits import Isolation
from edgesmith.model import Model
from tests.pipeline.conftest import Job
from tests.pipeline.test_robustness import settings

LEARNER = """
from typing import Literal
import onnx_ir as ir
from pydantic import BaseModel

class Options(BaseModel):
    what: Literal["halve", "restore", "stop"] = "halve"

class Learner(Method[Options]):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        steps = context.checkpoint / "steps.txt"
        done = steps.read_text() if steps.exists() else ""
        context.notes.remark(f"done before: {done or 'nothing'}")
        if context.options.what == "stop" and not done:
            context.checkpoint.mkdir(parents=True)
            steps.write_text("half")
            raise KeyboardInterrupt
        result = model.clone()
        for name, value in result.graph.initializers.items():
            given = context.source.graph.initializers[name].const_value.numpy()
            found = given if context.options.what == "restore" else value.const_value.numpy() / 2
            value.const_value = ir.tensor(found.astype(given.dtype), name=name)
        return result

@hookimpl
def register_methods():
    return [MethodRecord(name="learner", version="1", summary="Learns.", entry=f"{__name__}:Learner",
                         kind=Kind.RECOVER, options=f"{__name__}:Options", guarantee=Guarantee.LOSSY)]
"""


def compile_with(job: Job, source: Model, *steps: str, isolated: bool = False) -> edgesmith.Artifact:
    recipe = {"steps": [{"method": "learner", "options": {"what": what}} for what in steps]}
    out = job.folder / "artifact"
    chosen = replace(settings(job.folder, LEARNER), isolation=Isolation(120) if isolated else None)
    return edgesmith.compile(source, out=out, recipe=recipe, data=job.data, settings=chosen)


@pytest.mark.parametrize("isolated", [False, True])
def test_a_step_sees_the_model_that_the_run_started_from(job: Job, isolated: bool) -> None:
    artifact = compile_with(job, Model.load(job.model), "halve", "restore", isolated=isolated)
    _, halved, restored, _ = artifact.ledger.rows
    # Half of every weight and bias of two layers and a head: far from the source. Restored: equal in every bit.
    assert next(error for error in halved.errors if error.against == "source").sqnr_db < 10
    assert next(error for error in restored.errors if error.against == "source").sqnr_db == math.inf


def test_the_source_is_part_of_the_key_of_a_step(job: Job) -> None:
    whole = Model.load(job.model)
    assert [row.cached for row in compile_with(job, whole, "halve", "restore").ledger.rows[1:3]] == [False, False]
    assert [row.cached for row in compile_with(job, whole, "halve", "restore").ledger.rows[1:3]] == [True, True]
    half = whole.clone()
    for name, value in half.graph.initializers.items():
        value.const_value = ir.tensor((value.const_value.numpy() / 2).astype(np.float32), name=name)
    # The same step on the same input as before, in a run that started from that input.
    row = compile_with(job, half, "restore").ledger.rows[1]
    assert not row.cached
    assert next(error for error in row.errors if error.against == "source").sqnr_db == math.inf


def test_a_stopped_step_finds_what_it_left_and_a_finished_one_leaves_nothing(job: Job) -> None:
    source, unfinished = Model.load(job.model), job.folder / "store" / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        compile_with(job, source, "stop")
    assert [path.name for path in unfinished.glob("*/*/*")] == ["steps.txt"]
    rows = compile_with(job, source, "stop").ledger.rows
    assert "done before: half" in rows[1].remarks
    assert not list(unfinished.glob("*/*"))
