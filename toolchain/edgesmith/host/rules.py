"""Asks one rule what it finds. Not for plugins, as `lint` is. A rule that fails gives a finding that says so."""

from typing import TYPE_CHECKING, TypeGuard

from edgesmith.host.containment import first_words, log_traceback, sketch
from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.host.records import LintRecord

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry
    from edgesmith.model import Model


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
        and isinstance(found.is_note, bool)
        and all(isinstance(text, str) for text in (found.hazard, found.fix, *found.nodes))
    )
