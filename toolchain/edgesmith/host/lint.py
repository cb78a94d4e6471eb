"""Rules over a lowered graph: what they find, and how the host asks all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.host.dialect import Dialect
from edgesmith.host.records import LintRecord, TargetRecord

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


def run_lints(registry: "Registry", target: TargetRecord, model: "Model", dialect: Dialect) -> Iterator[str]:
    """Yield a remark for each finding of each installed rule for `target`. A rule that crashes gives one remark."""
    for record in registry.lints():
        if record.targets and target.name not in record.targets:
            continue
        try:
            findings = tuple(registry.load(record)(model, dialect))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a rule of a plugin may not stop a compile
            owner = registry.distribution_of(record)
            yield f"The lint {record.name} of {owner} crashed: {type(error).__name__}: {error}"
            continue
        yield from (_remark(record, finding) for finding in findings)


def _remark(record: LintRecord, finding: object) -> str:
    if not isinstance(finding, Finding):
        return f"The lint {record.name} returned {type(finding).__name__}, not a Finding."
    where = f" ({', '.join(finding.nodes[:5])}{', ...' if len(finding.nodes) > 5 else ''})" if finding.nodes else ""
    return f"{record.name}: {finding.hazard}{where} {finding.fix}"
