"""Calls a target's own code to check and build a lowered model, and contains its faults."""

import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgesmith.errors import EdgesmithError, TargetError
from edgesmith.host.containment import call_plugin, first_words, plugin_fault, sketch
from edgesmith.host.interfaces import Build, Target
from edgesmith.host.records import TargetRecord
from edgesmith.host.verdict import Verdict

if TYPE_CHECKING:
    from edgesmith.engine import EngineReport
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
    given = model.clone()
    before = sketch(given)
    verdict: object = _contained(record, target, "check", lambda: target.check(given))
    _require_untouched(record, "check", given, before)
    if not isinstance(verdict, Verdict):
        raise _fault(record, "check", f"returned {type(verdict).__name__} and no Verdict")
    return verdict


def build_files(record: TargetRecord, target: Target, model: "Model", directory: Path) -> Build:
    """Let the target write its files into the empty `directory`, and check the entry that it names.

    Weights that no node reads are left out: no device needs them, and a stage would gain size by losing them.

    Raises:
        TargetError: The build crashed, its entry is no file in that directory, or its recipe is for another
            runtime than the target.
    """
    from edgesmith.graph.edit import remove_unread_initializers

    given = model.clone()
    remove_unread_initializers(given.ir)
    before = sketch(given)
    build: object = _contained(record, target, "build", lambda: target.build(given, directory))
    _require_untouched(record, "build", given, before)
    if not isinstance(build, Build):
        raise _fault(record, "build", f"returned {type(build).__name__} and no Build")
    entry = directory / build.entry
    if not entry.is_file() or directory.resolve() not in entry.resolve().parents:
        raise _fault(record, "build", f"named the entry {build.entry!r}, which is no file in its directory")
    # The manifest goes by the recipe, and what is asked before anything is built by the target.
    runtime = build.recipe.get("runtime")
    if (runtime == "onnxruntime") != target.for_onnx_runtime:
        raise _fault(record, "build", f"wrote runtime {runtime!r}, and for_onnx_runtime is {target.for_onnx_runtime}")
    return build


def finish_files(record: TargetRecord, target: Target, directory: Path) -> dict[str, object]:
    """Let the target add to the files of an artifact what takes long, such as a built engine; return facts about it.

    Raises:
        TargetError: It crashed.
    """
    facts: object = _contained(record, target, "finish", lambda: target.finish(directory))
    try:
        found: dict[str, object] = json.loads(json.dumps(dict(facts), allow_nan=False))  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise _fault(record, "finish", f"returned no facts that JSON can hold: {first_words(error)}") from error
    return found


def explain_engine(
    record: TargetRecord, target: Target, model: "Model", layers: str, times: str = ""
) -> "EngineReport":
    """Return what the target reads from a runtime's description of the engine that it built of `model`.

    Raises:
        TargetError: It cannot read the description, crashed, or returned something else.
    """
    from edgesmith.engine import EngineReport

    report: object = _contained(record, target, "read_engine", lambda: target.read_engine(model, layers, times))
    if not isinstance(report, EngineReport):
        raise _fault(record, "read_engine", f"returned {type(report).__name__} and no EngineReport")
    return report


def _contained(record: TargetRecord, target: Target, what: str, work: Callable[[], ResultT]) -> ResultT:
    # A full disk while building is the disk's fault; the writer of the directory explains it.
    return call_plugin(work, _name(record, what), TargetError, module=type(target).__module__, passing=(OSError,))


def _require_untouched(record: TargetRecord, what: str, given: "Model", before: Hashable) -> None:
    if sketch(given) != before:
        raise _fault(record, what, "edited the graph that it was given")


def _name(record: TargetRecord, what: str) -> str:
    return f"Target {record.name} {record.version}: its {what}"


def _fault(record: TargetRecord, what: str, problem: str) -> EdgesmithError:
    return plugin_fault(TargetError, _name(record, what), problem)
