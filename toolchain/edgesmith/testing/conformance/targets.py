"""Checks of a target."""

import tempfile
from functools import cached_property
from pathlib import Path

from edgesmith.errors import Condition, EdgesmithError, StepError
from edgesmith.host.building import build_files, check_target
from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect
from edgesmith.host.interfaces import Target
from edgesmith.host.records import TargetRecord
from edgesmith.host.step import run_lowering
from edgesmith.host.targets import find_target
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.serialization import to_bytes
from edgesmith.testing.conformance.bench import Bench
from edgesmith.testing.conformance.result import CheckResult, failed, not_applicable, ok

_REPRESENTATIVES = ("cnn", "llama", "quantized", "external")
"""Models that stand for all where a check is not thorough, since lowering proves and times what it tries."""
_NOWHERE = "The target took none of the models."


class TargetBench(Bench[TargetRecord]):
    """A target, and what it made of each model."""

    @cached_property
    def target(self) -> Target:
        """An instance, with its profile."""
        return find_target(self.registry, self.registry.qualified_name(self.record))[1]

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each model."""
        names = self.models if self.thorough else (*_REPRESENTATIVES, *self._further)
        return {name: check_target(self.record, self.target, self.models[name]) for name in names}

    @cached_property
    def lowered(self) -> dict[str, Model | StepError]:
        """What lowering gave for each model that the target takes."""
        taken = (name for name, verdict in self.verdicts.items() if verdict.status != "refuse")
        return {name: self.lower(name) for name in taken}

    def lower(self, name: str) -> Model | StepError:
        """Return the lowered model of that name, or the error."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            context = Context(None, self.target.dialect, Path(folder), self.data(name))
            try:
                return run_lowering(self.record, self.target, self.models[name], context).model
            except StepError as error:
                return error


def the_dialect_is_complete(bench: TargetBench) -> CheckResult:
    """The target has a dialect with an opset."""
    dialect = getattr(bench.target, "dialect", None)
    if not isinstance(dialect, Dialect) or dialect.opset < 9:
        return failed(f"its dialect is {dialect!r}", "Set the class attribute `dialect` to an edgesmith.Dialect.")
    return ok()


def check_is_total(bench: TargetBench) -> CheckResult:
    """`check` answers for every graph, and says why where it refuses."""
    try:
        verdicts = bench.verdicts
    except EdgesmithError as error:
        return failed(error.what, "Let `check` return a Verdict for every valid graph.")
    silent = [name for name, verdict in verdicts.items() if verdict.status != "ok" and not verdict.reason]
    if silent:
        return failed(f"no reason for tiny model {silent[0]!r}", "Write Verdict.refuse(reason, nodes).")
    return ok(f"takes {sum(verdict.status == 'ok' for verdict in verdicts.values())} of {len(verdicts)} models")


def lowering_keeps_outputs(bench: TargetBench) -> CheckResult:
    """Every graph that the target takes is lowered to one that runs, with the same inputs and outputs."""
    for name, lowered in bench.lowered.items():
        if isinstance(lowered, StepError) and lowered.condition is not Condition.INPUT_UNTOUCHED:
            return failed(f"model {name!r}: {lowered.what}", "`check` must refuse what `lower` cannot do.")
    return ok() if bench.lowered else not_applicable(_NOWHERE)


def the_input_model_is_untouched(bench: TargetBench) -> CheckResult:
    """The model that is lowered is the same afterwards."""
    for name, lowered in bench.lowered.items():
        if isinstance(lowered, StepError) and lowered.condition is Condition.INPUT_UNTOUCHED:
            return failed(f"model {name!r}: {lowered.what}", "Start with model.clone().")
    return ok() if bench.lowered else not_applicable(_NOWHERE)


def lowering_is_deterministic(bench: TargetBench) -> CheckResult:
    """Lowering again makes the same graph, byte for byte."""
    for name, lowered in bench.lowered.items():
        again = bench.lower(name)
        if isinstance(lowered, Model) and (isinstance(again, StepError) or to_bytes(lowered.ir) != to_bytes(again.ir)):
            return failed(f"model {name!r}: another graph than before", "Do not iterate over sets.")
    return ok() if bench.lowered else not_applicable(_NOWHERE)


def the_build_names_its_entry(bench: TargetBench) -> CheckResult:
    """`build` writes files into its folder and names the one that a runner opens."""
    for name, lowered in bench.lowered.items():
        if isinstance(lowered, Model):
            with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
                try:
                    build_files(bench.record, bench.target, lowered, Path(folder))
                except EdgesmithError as error:
                    return failed(f"model {name!r}: {error.what}", error.fix)
    return ok() if bench.lowered else not_applicable(_NOWHERE)


TARGET_CHECKS = (
    the_dialect_is_complete,
    check_is_total,
    lowering_keeps_outputs,
    the_input_model_is_untouched,
    lowering_is_deterministic,
    the_build_names_its_entry,
)
