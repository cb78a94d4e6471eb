"""Checks of a lint."""

from collections.abc import Iterator
from functools import cached_property

from edgesmith.host.lint import Finding
from edgesmith.host.records import LintRecord
from edgesmith.model import Model
from edgesmith.testing.conformance.bench import Bench
from edgesmith.testing.conformance.result import CheckResult, failed, not_applicable, ok
from edgesmith.testing.fakes import bare_dialect, fake_dialect


class LintBench(Bench[LintRecord]):
    """A rule, and what it finds in each model."""

    @cached_property
    def found(self) -> dict[str, list[Finding]]:
        """The findings in each model, for the fake dialect."""
        return {name: self.ask(model) for name, model in self.models.items()}

    def ask(self, model: Model) -> list[Finding]:
        """Return what the rule finds in a copy of `model`."""
        return list(self.registry.load(self.record)(model.clone(), fake_dialect()))

    def findings(self) -> Iterator[tuple[str, Finding]]:
        """Yield every finding with the name of its model."""
        for name, findings in self.found.items():
            for finding in findings:
                yield name, finding


def it_answers_for_every_graph(bench: LintBench) -> CheckResult:
    """The rule returns findings for every graph and dialect, and nothing else."""
    for name, finding in bench.findings():
        if not isinstance(finding, Finding):
            return failed(f"model {name!r}: it returned {type(finding).__name__}", "Return edgesmith.Finding.")
    for model in bench.models.values():
        list(bench.registry.load(bench.record)(model.clone(), bare_dialect()))
    return ok(f"{sum(map(len, bench.found.values()))} findings in {len(bench.found)} models")


def the_model_is_untouched(bench: LintBench) -> CheckResult:
    """The rule only reads."""
    for name, model in bench.models.items():
        given = model.clone()
        digest = given.digest()
        list(bench.registry.load(bench.record)(given, fake_dialect()))
        if given.digest() != digest:
            return failed(f"model {name!r} was edited", "Read the graph and leave it alone.")
    return ok()


def findings_say_what_and_how(bench: LintBench) -> CheckResult:
    """Each finding has a hazard and a fix, and names nodes or inputs that exist."""
    seen = 0
    for name, finding in bench.findings():
        seen += 1
        if not finding.hazard.strip() or not finding.fix.strip():
            return failed(f"model {name!r}: {finding!r}", "Write one sentence for the hazard and one for the fix.")
        graph = bench.models[name].graph
        known = {node.name for node in graph.all_nodes()} | {value.name for value in graph.inputs}
        unknown = [node for node in finding.nodes if node not in known]
        if unknown:
            return failed(f"model {name!r}: there is no node or input {unknown[0]!r}", "Name them as the graph does.")
    return ok() if seen else not_applicable("It found nothing in any model.")


def it_says_the_same_again(bench: LintBench) -> CheckResult:
    """The same graph gives the same findings in the same order."""
    for name, findings in bench.found.items():
        if bench.ask(bench.models[name]) != findings:
            return failed(f"model {name!r}: other findings than before", "Do not iterate over sets.")
    return ok()


LINT_CHECKS = (
    it_answers_for_every_graph,
    the_model_is_untouched,
    findings_say_what_and_how,
    it_says_the_same_again,
)
