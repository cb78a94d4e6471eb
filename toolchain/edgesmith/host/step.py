"""Runs one method on one Model, and checks every promise before anybody relies on the result.

The method is handed a copy of the graph, so the caller's graph is intact whatever the method does. Faults are caught
as BaseException (a plugin may call `sys.exit`); only Ctrl-C passes through.
"""

import errno
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from edgesmith.collector import spare_what_exists
from edgesmith.errors import Condition, EdgesmithError, StepError
from edgesmith.host.containment import first_words, log_traceback
from edgesmith.host.context import Context, Notes
from edgesmith.host.places import definition_of, home_of, own_frame, show_frame
from edgesmith.host.postconditions import Promise, check_result, fail, sample_batch
from edgesmith.host.records import MethodRecord, StepEvent, TargetRecord
from edgesmith.host.sudden_ends import noted
from edgesmith.host.verdict import Verdict

if TYPE_CHECKING:
    from edgesmith.host.interfaces import Method, Target
    from edgesmith.host.registry import Registry
    from edgesmith.isolation.limits import Isolation
    from edgesmith.model import Model

__all__ = ["StepResult", "author_of", "check_method", "perform", "run_lowering", "run_step"]

FoundT = TypeVar("FoundT")

CHECK_CRASHED = "check crashed: "
"""How the reason of a refusal begins that stands for a crash in `check`."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step came to."""

    model: "Model"
    """The rewritten model; the one before the step unless the verdict is ok."""
    verdict: Verdict
    seconds: float
    """Wall time of `apply`, without `check` and without the host's own proof; 0 if it was not called."""
    notes: Notes
    relative_error: float | None = None
    """Largest change of an output on sample data, relative to its largest magnitude; None if it was not compared."""


def check_method(
    registry: "Registry",
    record: MethodRecord,
    model: "Model",
    context: Context[Any],
    *,
    isolation: "Isolation | None" = None,
) -> Verdict:
    """Return whether a method applies to `model`. A crash in `check` is a refusal that names the plugin.

    Raises:
        StepError: The method exceeded the limits of its isolation, or ended its process.
        PluginError: The method's class cannot be loaded.
    """
    if isolation is not None:
        from edgesmith.isolation.parent import check_isolated

        return check_isolated(registry, record, model, context, isolation)
    author = author_of(registry, record, context.options)
    kind = registry.load(record)
    with noted(registry.plugin_of(record), f"the check of {author}"):
        return _check(kind, model.clone(), context, author)


def run_step(
    registry: "Registry",
    record: MethodRecord,
    model: "Model",
    context: Context[Any],
    *,
    index: int = 0,
    isolation: "Isolation | None" = None,
) -> StepResult:
    """Check and apply one method, and prove its result.

    Args:
        registry: Where the method comes from; its observers are told.
        record: The method.
        model: The model to rewrite. It is unchanged afterwards, also after a failure.
        context: What the method may use, with validated options.
        index: Position in the recipe, for observers.
        isolation: Limits of a process of its own for the method; None runs it in this one.

    Returns:
        The new model with its provenance extended, or `model` itself if the verdict is skip or refuse.

    Raises:
        StepError: The method crashed, broke a promise, or exceeded its limits; names plugin, version, options, node.
        PluginError: The method's class cannot be loaded.
    """
    author = author_of(registry, record, context.options)
    event = StepEvent(index, record.name, registry.distribution_of(record), _plain(context.options))
    registry.observers.before_step(event)
    try:
        if isolation is None:
            with noted(registry.plugin_of(record), f"step {index}, {author}"):
                result = perform(registry, record, model, context)
        else:
            from edgesmith.isolation.parent import perform_isolated

            result = perform_isolated(registry, record, model, context, isolation)
    except EdgesmithError as error:
        registry.observers.on_step_error(event, error)
        raise
    if result.verdict.status == "refuse":
        registry.observers.on_step_error(event, _refusal(author, result.verdict))
    else:
        registry.observers.after_step(replace(event, seconds=result.seconds, status=result.verdict.status))
    return result


@spare_what_exists()
def run_lowering(record: TargetRecord, target: "Target", model: "Model", context: Context[Any]) -> StepResult:
    """Lower a model to the form of a target, under the same conditions as a step.

    Args:
        record: The target, for error messages.
        target: An instance of it.
        model: The model to lower. It is unchanged afterwards, also after a failure.
        context: Data, seed and threads; lowering has no options.

    Raises:
        StepError: `lower` crashed or broke a promise.
    """
    given = model.clone()
    promise = Promise(f"target {record.name} {record.version}")
    return _rewrite(
        lambda: target.lower(given, context), (type(target), "lower"), given, given.digest(), promise, context
    )


def author_of(registry: "Registry", record: MethodRecord, options: object) -> str:
    """Return how errors name a step: method, version, distribution and options."""
    shown = ", ".join(f"{name}={value!r}" for name, value in _plain(options).items()) or "no options"
    return f"method {record.name} {record.version} from {registry.distribution_of(record)} ({shown})"


@spare_what_exists()
def perform(registry: "Registry", record: MethodRecord, model: "Model", context: Context[Any]) -> StepResult:
    """Check and apply one method in this process, and prove its result. Arguments and errors as for `run_step`."""
    author = author_of(registry, record, context.options)
    kind = registry.load(record)
    promise = Promise(author, record.guarantee, record.tolerance, record.drops_caches)
    given = model.clone()
    digest = given.digest()
    verdict = _check(kind, given, context, author)
    if verdict.status != "ok":
        _require_untouched(given, digest, promise)
        _require_texts(context.notes, promise)
        return StepResult(model, verdict, 0.0, context.notes)
    rewrite = _rewrite(lambda: kind().apply(given, context), (kind, "apply"), given, digest, promise, context)
    if _proven(rewrite.model.digest, promise) == digest:
        context.notes.remark(f"{record.name} said that it applies and changed nothing.")
    steps = (*model.provenance.steps, f"{record.name} {record.version}")
    finished = replace(rewrite.model, provenance=replace(model.provenance, steps=steps))
    return StepResult(finished, verdict, rewrite.seconds, context.notes, rewrite.relative_error)


def _rewrite(
    work: "Callable[[], Model]",
    called: tuple[type, str],
    given: "Model",
    digest: str,
    promise: Promise,
    context: Context[Any],
) -> StepResult:
    """Return what `work` makes of `given`, with everything checked that a rewrite must fulfil.

    `called` is the class of the plugin that `work` calls, and the name of the method.
    """
    _seed(context.seed)
    start = time.perf_counter()
    try:
        rewritten = work()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _crash(promise.author, error, *called) from error
    seconds = time.perf_counter() - start
    _require_untouched(given, digest, promise)
    _require_texts(context.notes, promise)
    samples = sample_batch(given, context.calibration, seed=context.seed)
    made_up = context.calibration is None
    proof = _proven(
        lambda: check_result(given, rewritten, promise, samples, threads=context.threads, random=made_up), promise
    )
    for remark in proof.remarks:
        context.notes.remark(remark)
    return StepResult(rewritten, Verdict.ok(), seconds, context.notes, proof.relative_error)


def _check(kind: "type[Method[Any]]", model: "Model", context: Context[Any], author: str) -> Verdict:
    try:
        verdict = kind().check(model, context)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  contains plugin faults, see the head of this file
        log_traceback(author, error)
        place = f"{_place(error, kind, 'check')}{_at_node(error)}"
        return Verdict.refuse(f"{CHECK_CRASHED}{author}: {first_words(error)}{place}")
    if not isinstance(verdict, Verdict) or verdict.status not in ("ok", "skip", "refuse"):
        return Verdict.refuse(f"{CHECK_CRASHED}{author}: returned {type(verdict).__name__}, not a Verdict")
    nodes = verdict.nodes if isinstance(verdict.nodes, tuple) else (verdict.nodes,)
    if not all(isinstance(text, str) for text in (verdict.reason, *nodes)):
        return Verdict.refuse(f"{CHECK_CRASHED}{author}: returned a Verdict whose reason or nodes are not text")
    if verdict.status != "ok" and not verdict.reason:
        return replace(verdict, reason=f"{author} gave no reason")
    return verdict


def _proven(look: Callable[[], FoundT], promise: Promise) -> FoundT:
    """Return what looking at a result finds. What a plugin returned may run its code, as tensors made on demand do."""
    try:
        return look()
    except (KeyboardInterrupt, EdgesmithError):
        raise
    except BaseException as error:
        log_traceback(promise.author, error)
        raise fail(
            promise,
            Condition.RUNS,
            f"returned a Model that cannot be read: {first_words(_root(error))}",
            expected="weights, names and attributes that can be read, hashed and saved",
            why="The host proves every result by running it.",
            cause=error,
        ) from error


def _root(error: BaseException) -> BaseException:
    """Return the first of a chain of exceptions: libraries wrap what a tensor raised."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _require_texts(notes: Notes, promise: Promise) -> None:
    texts = [("remark", text) for text in notes.remarks]
    texts += [("skipped node or its reason", text) for pair in notes.skipped.items() for text in pair]
    texts += [("missed limit", text) for text in notes.missed]
    for role, text in texts:
        if not isinstance(text, str):
            raise fail(
                promise,
                Condition.NO_CRASH,
                f"noted a {role} of type {type(text).__name__}",
                expected="text (str), as context.notes.remark and context.notes.skip take it",
                why="Remarks are kept with the result and printed in the report.",
            )


def _require_untouched(given: "Model", digest: str, promise: Promise) -> None:
    if not _has_digest(given, digest):
        raise fail(
            promise,
            Condition.INPUT_UNTOUCHED,
            "edited the graph it was given",
            expected="a rewrite of model.clone(), with new arrays for changed weights",
            why="The model before the step must stay what it was: the ledger compares with it, and undo returns to it.",
        )


def _has_digest(model: "Model", digest: str) -> bool:
    try:
        return model.digest() == digest
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  the graph could be hashed before the plugin had it, so it was changed
        return False


def _refusal(author: str, verdict: Verdict) -> StepError:
    """Return what observers hear of a verdict that the caller of `run_step` has to act on."""
    return StepError(
        f"{author} refuses this model: {verdict.reason}",
        expected="a model that the method can be applied to",
        why="The step was not applied.",
        fix="Remove the step, or change its options.",
    )


def _crash(author: str, error: BaseException, owner: type, hook: str) -> StepError:
    """Return the error for a crash in `apply`. A refusal by the method keeps its own advice."""
    log_traceback(author, error)
    where = f"{author}{_at_node(error)}"
    if isinstance(error, EdgesmithError):
        return StepError(f"{where}: {error.what}", expected=error.expected, why=error.why, fix=error.fix)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StepError(
            f"{where}: {first_words(error)}",
            expected="room for the files that a step writes on its way",
            why="The step has no result. The model before it is intact, and a new run resumes there.",
            fix="Free some space, or let TMPDIR name a directory on a larger disk.",
        )
    return StepError(
        f"{where}: crashed with {first_words(error)}{_place(error, owner, hook)}",
        expected="a method that checks its input in `check` and applies without an exception",
        why="The step has no result. The model before it is intact, and a corrected run resumes there.",
        fix="Remove the step, change its options, or report the crash to the author of the plugin.",
    ).broke(Condition.NO_CRASH)


def _place(error: BaseException, owner: type, hook: str) -> str:
    """Return " at my_plugin.py:19" for the last frame of the crash in the plugin's own code.

    Where the call itself failed, it is the place where the plugin defines what was called.
    """
    found = traceback.extract_tb(error.__traceback__)
    frames = [(frame.filename, frame.lineno or 0) for frame in found if frame.filename != __file__]
    return show_frame(own_frame(frames, home_of(owner.__module__)) or definition_of(getattr(owner, hook, None)))


def _at_node(error: BaseException) -> str:
    """Return " at node ..." for the node that the innermost frame of the crash was working on, or nothing."""
    import onnx_ir as ir

    for local in reversed(list(_frame_locals(error))):
        for value in (local.get("node"), *local.values()):
            if isinstance(value, ir.Node):
                return f" at node {value.name or '(unnamed)'!r} ({value.op_type})"
    return ""


def _frame_locals(error: BaseException) -> Iterator[Mapping[str, object]]:
    frame = error.__traceback__
    while frame is not None:
        yield frame.tb_frame.f_locals
        frame = frame.tb_next


def _seed(seed: int) -> None:
    """Seed every generator that a method may reach for."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _plain(options: object) -> Mapping[str, object]:
    from pydantic import BaseModel

    return options.model_dump(mode="json") if isinstance(options, BaseModel) else {}
