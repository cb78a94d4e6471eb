"""Rules over a lowered graph: what they find, and how the host asks all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.host.dialect import Dialect
from edgesmith.host.records import TargetRecord
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
    """Names of the nodes that it is about, or of inputs of the graph."""
    is_note: bool = False
    """Whether it only tells what to expect: `edgesmith lint` then ends with 0."""


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
    # Imported here, since what asks a rule needs what a rule answers with.
    from edgesmith.host.rules import ask_rule

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
