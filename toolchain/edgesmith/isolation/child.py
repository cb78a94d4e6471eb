"""The process of a step: `python -m edgesmith.isolation.child SOCKET FOLDER`. Runs one step and answers."""

import faulthandler
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.isolation.guard import end_with_the_run
from edgesmith.isolation.request import (
    AFTER_DIRECTORY,
    BEFORE_DIRECTORY,
    SOURCE_DIRECTORY,
    STACK_FILE,
    StepRequest,
    load_again,
    unpack_dialect,
)

if TYPE_CHECKING:
    from edgesmith.host.context import Context
    from edgesmith.host.registry import Registry
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
    from edgesmith.isolation.remote import Run

    channel = Channel(socket.socket(fileno=descriptor), takes_arrays=True)
    channel.send(Message({"call": "begin"}))
    try:
        content = _perform(request, Run(channel, folder), folder)
    except Exception as error:  # noqa: BLE001  raised again in the run, where it would have been without isolation
        content = {"error": faults.to_json(error)}
    channel.send(Message({"call": "done", **content}))


def _perform(request: StepRequest, run: "Run", folder: Path) -> dict[str, Any]:
    """Return what the step came to as JSON data. A new model is saved in `folder`."""
    from edgesmith.host.step import check_method, perform
    from edgesmith.model import Model

    registry = load_again(request.plugins)
    record = registry.method(request.method)
    model = Model.load(folder / BEFORE_DIRECTORY)
    source = Model.load(folder / SOURCE_DIRECTORY) if (folder / SOURCE_DIRECTORY).is_dir() else None
    context = _context(request, registry, run, source)
    if request.only_check:
        return {"verdict": asdict(check_method(registry, record, model, context))}
    result = perform(registry, record, model, context)
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

    scoring = None
    if request.metric is not None:
        metric = registry.metric(request.metric)
        make = registry.load(metric)
        scoring = Scoring(metric.name, make, metric.higher_is_better, metric.unit, metric.needs_labels)
    measures = request.measures_latency
    return Context(
        options=registry.validate_options(registry.method(request.method), request.options),
        dialect=unpack_dialect(request),
        scratch=Path(request.scratch),
        calibration=None if request.calibration is None else RemoteSource(run, request.calibration),
        seed=request.seed,
        threads=request.threads,
        progress=RemoteProgress(run),
        trial=None if measures is None else RemoteTrial(run, measures_latency=measures),
        scoring=scoring,
        source=source,
        checkpoint=None if request.checkpoint is None else Path(request.checkpoint),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
