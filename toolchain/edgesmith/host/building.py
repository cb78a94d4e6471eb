"""Calls a target's own code to check and build a lowered model, and contains its faults."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgesmith.errors import EdgesmithError, TargetError
from edgesmith.host.interfaces import Build, Target
from edgesmith.host.records import TargetRecord
from edgesmith.host.verdict import Verdict

if TYPE_CHECKING:
    from edgesmith.model import Model

ResultT = TypeVar("ResultT")


def require_accepted(record: TargetRecord, target: Target, model: "Model") -> None:
    """Raise unless the target takes the model.

    Raises:
        TargetError: It does not, with its reason and the nodes concerned, or its check crashed.
    """
    verdict = check_target(record, target, model)
    if verdict.status != "refuse":
        return
    raise TargetError(
        f"Target {record.name} does not take this graph: {verdict.reason}",
        expected="a graph made of operators and types that the target's runtime executes",
        why=f"It would fail on the device. Nodes concerned: {', '.join(verdict.nodes[:5]) or 'the whole graph'}.",
        fix="Choose another target (`edgesmith targets`), or change the step that produced these nodes.",
    )


def check_target(record: TargetRecord, target: Target, model: "Model") -> Verdict:
    """Return what the target says of the model.

    Raises:
        TargetError: Its check crashed, or answered with something else than a verdict.
    """
    verdict: object = _contained(record, "check", lambda: target.check(model))
    if not isinstance(verdict, Verdict):
        raise _fault(record, "check", f"returned {type(verdict).__name__} and no Verdict")
    return verdict


def build_files(record: TargetRecord, target: Target, model: "Model", directory: Path) -> Build:
    """Let the target write its files into the empty `directory`, and check the entry that it names.

    Raises:
        TargetError: The build crashed, or its entry is no file in that directory.
    """
    build = _contained(record, "build", lambda: target.build(model, directory))
    entry = directory / build.entry
    if not entry.is_file() or directory.resolve() not in entry.resolve().parents:
        raise _fault(record, "build", f"named the entry {build.entry!r}, which is no file in its directory")
    return build


def finish_files(record: TargetRecord, target: Target, directory: Path) -> dict[str, object]:
    """Let the target add to the files of an artifact what takes long, such as a built engine; return facts about it.

    Raises:
        TargetError: It crashed.
    """
    return dict(_contained(record, "finish", lambda: target.finish(directory)))


def _contained(record: TargetRecord, what: str, work: Callable[[], ResultT]) -> ResultT:
    try:
        return work()
    except (EdgesmithError, KeyboardInterrupt, OSError):
        # A full disk while building is the disk's fault; the writer of the directory explains it.
        raise
    except BaseException as error:
        raise _fault(record, what, f"crashed with {type(error).__name__}: {error}") from error


def _fault(record: TargetRecord, what: str, problem: str) -> TargetError:
    return TargetError(
        f"Target {record.name} {record.version}: its {what} {problem}.",
        expected="a target that answers for every valid graph",
        why="Without its files there is nothing to measure or to ship.",
        fix="Report it to the author of the target's plugin, or choose another target.",
    )
