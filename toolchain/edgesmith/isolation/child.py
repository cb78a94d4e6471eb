"""The process of a step: `python -m edgesmith.isolation.child SOCKET FOLDER`. Runs one step and answers."""

import faulthandler
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.isolation.folder import AFTER_DIRECTORY, BEFORE_DIRECTORY, SOURCE_DIRECTORY, STACK_FILE
from edgesmith.isolation.guard import end_with_the_run
from edgesmith.isolation.request import StepRequest, load_again, unpack_dialect

if TYPE_CHECKING:
    from pydantic import BaseModel

    from edgesmith.host.context import Context
    from edgesmith.host.registry import Registry
    from edgesmith.host.step import StepResult
    from edgesmith.isolation.remote import Run
    from edgesmith.model import Model


def main(descriptor: int, folder: Path) -> None:
    """Run the step that is requested in `folder`, and answer the run over the socket `descriptor`."""
    end_with_the_run(descriptor)
    with (folder / STACK_FILE).open("w") as stack:
        faulthandler.enable(stack, all_threads=False)
        _serve(descriptor, folder)
        faulthandler.disable()


def _serve(descriptor: int, folder: Path) -> None:
    request = StepRequest.read(folder)
    sys.path[:] = request.import_path
    import onnxruntime  # noqa: F401  loaded before the clock runs

    from edgesmith.isolation import faults
    from edgesmith.isolation.channel import Channel, Message
    from edgesmith.isolation.overheard import Overheard
    from edgesmith.isolation.remote import Run

    channel = Channel(socket.socket(fileno=descriptor), takes_arrays=True)
    Overheard(folder)
    channel.send(Message({"call": "begin"}))
    try:
        content = _perform(request, Run(channel, folder), folder)
    except Exception as error:  # noqa: BLE001  raised again in the run, where it would have been without isolation
        content = {"error": faults.to_json(error)}
    channel.send(Message({"call": "done", **content}))


def _perform(request: StepRequest, run: "Run", folder: Path) -> dict[str, Any]:
    """Return what the work came to as JSON data. A new model is saved in `folder`."""
    from edgesmith.model import Model

    registry = load_again(request.plugins)
    if request.work == "finish":
        return _of_target(request, registry, run, None, folder)
    model = Model.load(folder / BEFORE_DIRECTORY)
    if request.work in ("check", "apply"):
        source = Model.load(folder / SOURCE_DIRECTORY) if (folder / SOURCE_DIRECTORY).is_dir() else None
        return _of_method(request, registry, run, model, source, folder)
    if request.work == "lint":
        from edgesmith.host.rules import ask_rule

        return {
            "findings": [asdict(found) for found in ask_rule(registry, request.record, model, unpack_dialect(request))]
        }
    return _of_target(request, registry, run, model, folder)


def _of_method(
    request: StepRequest, registry: "Registry", run: "Run", model: "Model", source: "Model | None", folder: Path
) -> dict[str, Any]:
    from edgesmith.host.step import check_method, perform

    record = registry.method(request.record)
    context = _context(request, registry, run, source)
    if request.work == "check":
        return {"verdict": asdict(check_method(registry, record, model, context))}
    return _as_json(perform(registry, record, model, context), folder)


def _of_target(
    request: StepRequest, registry: "Registry", run: "Run", model: "Model | None", folder: Path
) -> dict[str, Any]:
    from edgesmith.host.building import build_files, check_target, finish_files
    from edgesmith.host.step import run_lowering
    from edgesmith.host.targets import find_target

    record, target = find_target(registry, request.record)
    if model is None:
        return {"facts": finish_files(record, target, Path(request.directory))}
    if request.work == "accept":
        return {"verdict": asdict(check_target(record, target, model))}
    if request.work == "build":
        build = build_files(record, target, model, Path(request.directory))
        return {"entry": build.entry, "recipe": dict(build.recipe)}
    return _as_json(run_lowering(record, target, model, _context(request, registry, run, None)), folder)


def _as_json(result: "StepResult", folder: Path) -> dict[str, Any]:
    """Return the result of a step or a lowering. Its model is saved in `folder`."""
    if result.verdict.status == "ok":
        result.model.save(folder / AFTER_DIRECTORY)
    return {
        "verdict": asdict(result.verdict),
        "seconds": result.seconds,
        "notes": asdict(result.notes),
        "relative_error": result.relative_error,
    }


def _context(request: StepRequest, registry: "Registry", run: "Run", source: "Model | None") -> "Context[Any]":
    from edgesmith.host.context import Context
    from edgesmith.host.trial import Scoring
    from edgesmith.isolation.remote import RemoteProgress, RemoteSource, RemoteTrial
    from edgesmith.measure.contained import MetricMaker

    scoring = None
    if request.metric is not None:
        metric = registry.metric(request.metric)
        author = f"Metric {metric.name} {metric.version} from {registry.distribution_of(metric)}"
        make = MetricMaker(author, registry.load(metric))
        scoring = Scoring(metric.name, make, metric.higher_is_better, metric.unit, metric.needs_labels)
    samples, taught = (
        None if facts is None else RemoteSource(run, facts)
        for facts in (request.calibration, request.source_calibration)
    )
    return Context(
        options=_options(request, registry),
        dialect=unpack_dialect(request),
        scratch=Path(request.scratch),
        calibration=samples,
        seed=request.seed,
        threads=request.threads,
        progress=RemoteProgress(run),
        trial=RemoteTrial(run) if request.has_trial else None,
        scoring=scoring,
        source=source,
        source_calibration=taught,
        checkpoint=None if request.checkpoint is None else Path(request.checkpoint),
    )


def _options(request: StepRequest, registry: "Registry") -> "BaseModel | None":
    """Return the options of a method. Lowering has none."""
    if request.work == "lower":
        return None
    return registry.validate_options(registry.method(request.record), request.options)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
