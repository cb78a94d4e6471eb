"""Rules over a lowered graph: what they find, and how the host asks all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from edgesmith.host.containment import first_words, log_traceback, sketch
from edgesmith.host.dialect import Dialect
from edgesmith.host.records import LintRecord, TargetRecord
from edgesmith.own_code import OWN_DISTRIBUTION

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry
    from edgesmith.isolation.limits import Isolation
    from edgesmith.model import Model


@dataclass(frozen=True, slots=True)
class Finding:
    """One hazard that a rule sees in a lowered graph."""

    hazard: str
    """What is wrong, as one sentence."""
    fix: str
    """What to do about it, as one sentence."""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LintResult:
    """What one rule found in one place, or how it failed."""

    lint: str
    """Name of the rule."""
    finding: Finding

    def __str__(self) -> str:
        """Return it as one remark for the report."""
        nodes = self.finding.nodes
        where = f" ({', '.join(nodes[:5])}{', ...' if len(nodes) > 5 else ''})" if nodes else ""
        return f"{self.lint}: {self.finding.hazard}{where} {self.finding.fix}"


def run_lints(
    registry: "Registry",
    target: TargetRecord,
    model: "Model",
    dialect: Dialect,
    *,
    isolation: "Isolation | None" = None,
) -> Iterator[LintResult]:
    """Yield what each installed rule for `target` finds. A rule that fails gives one result that says so.

    Args:
        registry: Where the rules come from.
        target: The target that the model was lowered for.
        model: The lowered model.
        dialect: The target's form.
        isolation: Limits of a process of its own for each rule of a stranger; None asks all in this one.
    """
    for record in registry.lints():
        if record.targets and not {target.name, target.extends} & set(record.targets):
            continue
        name = registry.qualified_name(record)
        # Edgesmith's own rules are tested together with the host, and a process for each costs a second.
        if isolation is None or registry.plugin_of(record).distribution == OWN_DISTRIBUTION:
            found = ask_rule(registry, name, model, dialect)
        else:
            from edgesmith.isolation.parent import ask_rule_isolated

            found = ask_rule_isolated(registry, record, model, dialect, isolation)
        for finding in found:
            yield LintResult(record.name, finding)


def ask_rule(registry: "Registry", name: str, model: "Model", dialect: Dialect) -> tuple[Finding, ...]:
    """Return what the rule called `name` finds, or how it failed."""
    record = registry.lint(name)
    given = model.clone()
    before = sketch(given)
    try:
        findings: tuple[object, ...] = tuple(registry.load(record)(given, dialect))
        if sketch(given) != before:
            return (rule_fault(registry, record, "edited the graph that it was given"),)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  a rule of a plugin may not stop a compile
        log_traceback(f"lint {record.name} of {registry.distribution_of(record)}", error)
        return (rule_fault(registry, record, f"crashed: {first_words(error)}"),)
    return tuple(
        found
        if _is_finding(found)
        else rule_fault(registry, record, f"returned {type(found).__name__}, not a Finding of texts")
        for found in findings
    )


def rule_fault(registry: "Registry", record: LintRecord, problem: str) -> Finding:
    """Return the finding that stands for a rule that failed."""
    return Finding(
        f"The rule of {registry.distribution_of(record)} {problem}.", "Report it to the author of the plugin."
    )


def _is_finding(found: object) -> TypeGuard[Finding]:
    return (
        isinstance(found, Finding)
        and isinstance(found.nodes, tuple)
        and all(isinstance(text, str) for text in (found.hazard, found.fix, *found.nodes))
    )
