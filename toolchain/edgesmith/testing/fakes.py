"""A made-up target and a made-up runner, as plugin modules. Everything that they report says that it is fake."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect, TensorFormat, WeightFormat
from edgesmith.host.interfaces import Build, Target
from edgesmith.host.records import RunnerRecord, TargetRecord, Tier
from edgesmith.host.verdict import Verdict
from edgesmith.measure.reference import ReferenceRunner
from edgesmith.measure.runner import (
    Conditions,
    LatencyComparison,
    LatencyPlan,
    MemoryPlan,
    MemoryUse,
    summarize,
)
from edgesmith.testing.registry import module_with

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.model import Model

FAKE_TARGET = "fake-target"
FAKE_RUNNER = "fake-runner"
DEFAULT_LATENCY_MS = 1.0
"""Time of a stage that the table of a fake runner does not hold."""

_FAKE_BYTES = 1e6
_FAKE_ROUNDS = 7
_BLOCK_SIZES = (16, 32, 64, 128)


def fake_dialect() -> Dialect:
    """Return the Q/DQ form of a target that takes nearly everything: int8, few bits for weights, simulated float8."""
    return Dialect(
        name="fake",
        opset=25,
        activation=TensorFormat("int8", symmetric=False),
        weight=TensorFormat("int8", symmetric=True, granularity="channel"),
        operators=frozenset(("MatMul", "Gemm", "Conv")),
        dynamic=True,
        attention_products=True,
        weight_only=(
            WeightFormat("int8", symmetric=False, block_sizes=_BLOCK_SIZES, opset=21),
            WeightFormat("uint4", symmetric=False, block_sizes=_BLOCK_SIZES, opset=21, offsets=True),
            WeightFormat("uint2", symmetric=False, block_sizes=_BLOCK_SIZES, opset=25, offsets=True),
        ),
        float8="simulated",
    )


def bare_dialect() -> Dialect:
    """Return the form of a target that runs nothing but float."""
    return Dialect(
        name="bare",
        opset=20,
        activation=TensorFormat("int8", symmetric=True),
        weight=TensorFormat("int8", symmetric=True),
        operators=frozenset(),
    )


def fake_target() -> ModuleType:
    """Return a plugin that registers `fake-target`: it takes every graph and ships it as it is, in ONNX.

    Its runner is `fake-runner`, which `fake_runner` registers.
    """
    record = TargetRecord(
        name=FAKE_TARGET,
        version="0",
        summary="Takes every graph; there is no such device.",
        entry="fake_target:FakeTarget",
        runner=FAKE_RUNNER,
        tier=Tier.SIMULATED,
    )
    return module_with("fake_target", (record,), FakeTarget=FakeTarget)


def fake_runner(latency_ms: Mapping[str, float] | None = None) -> ModuleType:
    """Return a plugin that registers `fake-runner`: real outputs, and latencies from a table.

    Args:
        latency_ms: Time of each stage by its label in the ledger, such as "source" or "quantize-int8", or by the stem
            of the model file. Others take `DEFAULT_LATENCY_MS`.
    """
    table = dict(latency_ms or {})

    class TableRunner(FakeRunner):
        """A fake runner with a table of its own."""

        latency_table = table

    record = RunnerRecord(
        name=FAKE_RUNNER,
        version="0",
        summary="Answers latencies from a table; nothing is measured.",
        entry="fake_runner:TableRunner",
    )
    return module_with("fake_runner", (record,), TableRunner=TableRunner)


class FakeTarget(Target):
    """Takes every graph and ships it as it is."""

    dialect = fake_dialect()

    def check(self, model: "Model") -> Verdict:
        """Return ok."""
        return Verdict.ok()

    def lower(self, model: "Model", context: Context[None]) -> "Model":
        """Return a copy."""
        return model.clone()

    def build(self, model: "Model", directory: Path) -> Build:
        """Write `model.onnx`."""
        from edgesmith.serialization import write_onnx

        write_onnx(model.ir, directory / "model.onnx")
        return Build("model.onnx", {"fake": True})


class FakeRunner(ReferenceRunner):
    """Computes outputs in ONNX Runtime and answers times from a table and one size of memory for all."""

    measures_cost = True
    latency_table: Mapping[str, float] = {}

    def conditions(self, inputs: "Mapping[str, np.ndarray]") -> Conditions:
        """Return conditions that name no machine, since none is measured."""
        shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in inputs.items())
        table = {f"fake {label}": time for label, time in self.latency_table.items()}
        return Conditions("fake", "fake", "fake", self.threads, 1, shapes, "fake", table)

    def latency(
        self, entries: Mapping[str, Path], inputs: "Mapping[str, np.ndarray]", plan: LatencyPlan | None = None
    ) -> LatencyComparison:
        """Return the times of the table, the same in every round."""
        times = {
            label: [self.latency_table.get(label, self.latency_table.get(entry.stem, DEFAULT_LATENCY_MS))]
            * _FAKE_ROUNDS
            for label, entry in entries.items()
        }
        return LatencyComparison(runs=times, rounds=times, tier=self.tier, conditions=self.conditions(inputs))

    def peak_memory(self, entry: Path, inputs: "Mapping[str, np.ndarray]", plan: MemoryPlan | None = None) -> MemoryUse:
        """Return one megabyte, whatever the model."""
        conditions = self.conditions(inputs).as_mapping()
        peak = summarize([_FAKE_BYTES], unit="bytes", tier=self.tier, conditions=conditions)
        return MemoryUse(peak_bytes=peak, resident_bytes=int(_FAKE_BYTES), baseline_bytes=0)
