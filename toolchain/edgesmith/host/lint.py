"""Rules over a lowered graph: what they find, and how the host asks all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.host.dialect import Dialect
from edgesmith.host.records import TargetRecord

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry
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


def run_lints(registry: "Registry", target: TargetRecord, model: "Model", dialect: Dialect) -> Iterator[LintResult]:
    """Yield what each installed rule for `target` finds. A rule that crashes gives one result that says so."""
    for record in registry.lints():
        if record.targets and not {target.name, target.extends} & set(record.targets):
            continue
        try:
            findings: tuple[object, ...] = tuple(registry.load(record)(model, dialect))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a rule of a plugin may not stop a compile
            owner = registry.distribution_of(record)
            crash = f"The rule of {owner} crashed: {type(error).__name__}: {error}."
            findings = (Finding(crash, "Report it to the author of the plugin."),)
        for finding in findings:
            if not isinstance(finding, Finding):
                wrong = f"The rule returned {type(finding).__name__}, not a Finding."
                finding = Finding(wrong, "Report it to the author of the plugin.")
            yield LintResult(record.name, finding)
