"""A target, a rule, a metric, a runner and a frontend, sound but for one call, which breaks as the environment says.

`BREAK_HERE=target.lower:crash` is a place and a way. Where it never ends, it makes the file `NEVER_ENDING` first.
"""

import os
import time
from pathlib import Path

from edgesmith import (
    Build,
    Finding,
    FrontendRecord,
    LintRecord,
    MetricRecord,
    RunnerRecord,
    TargetRecord,
    Verdict,
    hookimpl,
)
from edgesmith.engine import EngineReport
from edgesmith.frontends.onnx_file import OnnxFrontend
from edgesmith.measure.reference import ReferenceRunner
from edgesmith.testing.fakes import FakeRunner, FakeTarget
from edgesmith_calibration.metrics import Sqnr

GARBAGE = 7


def told(place, model=None):
    """Break here, if that is told, and return whether garbage is to be returned."""
    where, _, way = os.environ.get("BREAK_HERE", "").partition(":")
    if where != place:
        return False
    if way == "crash":
        raise ZeroDivisionError("told so")
    if way == "edit":
        next(iter(model.graph)).name = "edited"
    if way == "leave":
        os._exit(5)
    if way == "never":
        Path(os.environ["NEVER_ENDING"]).touch()
        while True:
            time.sleep(0.01)
    held = []
    while way == "eat":
        held.append(bytearray(1 << 26))
    return way == "garbage"


COMMON = {"version": "1.0", "summary": "Breaks as told."}


@hookimpl
def register_targets():
    return [TargetRecord(name="told", entry="breaks_as_told:Device", runner="told", **COMMON)]


@hookimpl
def register_lints():
    return [LintRecord(name="told", entry="breaks_as_told:rule", **COMMON)]


@hookimpl
def register_metrics():
    return [MetricRecord(name="told", entry="breaks_as_told:Score", needs_labels=False, **COMMON)]


@hookimpl
def register_runners():
    return [RunnerRecord(name="told", entry="breaks_as_told:Local", **COMMON)]


@hookimpl
def register_frontends():
    return [FrontendRecord(name="told", entry="breaks_as_told:Reader", priority=99, **COMMON)]


class Device(FakeTarget):
    def __init__(self, profile=None):
        super().__init__(profile)
        if told("target.start"):
            self.dialect = GARBAGE

    def check(self, model):
        return GARBAGE if told("target.check", model) else Verdict.ok()

    def lower(self, model, context):
        return GARBAGE if told("target.lower", model) else model.clone()

    def build(self, model, directory):
        built = super().build(model, directory)
        return GARBAGE if told("target.build", model) else Build(built.entry, {"by": "told"})

    def finish(self, directory):
        return {"bad": {GARBAGE}} if told("target.finish") else {"finished": True}

    def read_engine(self, model, layers, times=""):
        return GARBAGE if told("target.read_engine") else EngineReport(layers=())


def rule(model, dialect):
    if told("lint.rule", model):
        return [GARBAGE]
    return [Finding("It is there.", "Nothing.")]


class Score(Sqnr):
    def __init__(self):
        super().__init__()
        told("metric.start")

    def update(self, outputs, labels=None, reference=None):
        if os.environ.get("BREAK_HERE") == "metric.update:edit":
            next(iter(outputs.values()))[...] = 0
        told("metric.update")
        super().update(outputs, labels, reference)

    def result(self):
        return "good" if told("metric.result") else super().result()


class Local(FakeRunner):
    def __init__(self, **settings):
        super().__init__(**settings)
        told("runner.start")

    def conditions(self, inputs):
        return GARBAGE if told("runner.conditions") else super().conditions(inputs)

    def latency(self, entries, inputs, plan=None):
        return GARBAGE if told("runner.latency") else super().latency(entries, inputs, plan)

    def peak_memory(self, entry, inputs, plan=None):
        return GARBAGE if told("runner.peak_memory") else super().peak_memory(entry, inputs, plan)

    def outputs(self, entry, batches):
        for outputs in ReferenceRunner.outputs(self, entry, batches):
            yield GARBAGE if told("runner.outputs") else outputs


class Reader(OnnxFrontend):
    def accepts(self, source):
        told("frontend.accepts")
        return super().accepts(source)

    def fingerprint(self, source, *, example_inputs=None):
        return GARBAGE if told("frontend.fingerprint") else super().fingerprint(source, example_inputs=example_inputs)

    def load(self, source, *, example_inputs=None):
        return GARBAGE if told("frontend.load") else super().load(source, example_inputs=example_inputs)
