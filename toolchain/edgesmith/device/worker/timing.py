"""Times several models in turns."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .archive import Facts, read_batch
from .machine import cool_down, state, waited_seconds
from .model import WorkerModel
from .running import open_model
from .turns import Clock, Timing, Visit, take_turns


class _FailedTurnError(Exception):
    """A model failed in its turn."""


def time_in_turns(request: Facts, folder: Path) -> Facts:
    """Load all models of a request at once, time them in turns on one batch, and return what was seen.

    A model that does not load or run is left out, with the reason.
    """
    import numpy

    with numpy.load(folder / request["batch"], allow_pickle=False) as archive:
        inputs = read_batch(archive, 0, request["inputs"])
    failures: dict[str, str] = {}

    def opened(file: str) -> WorkerModel:
        model = open_model({**request, "model": file}, folder)
        model.set_inputs(inputs)
        return model

    models = each(request["models"], opened, failures)
    waited = cool_down(request["cool_below_celsius"]) if request["cool_below_celsius"] else 0.0
    before = state()
    found = take_all_turns(models, request, failures)
    return {**found, "cooling_seconds": waited, "before": before, "after": state()}


def take_all_turns(
    models: Facts,
    request: Facts,
    failures: dict[str, str],
    *,
    own: tuple[type[Exception], ...] = (Exception,),
    waiting_clock: Clock = waited_seconds,
) -> Facts:
    """Warm loaded models up and time them in turns; either all run as CUDA graphs, or none.

    Args:
        models: The models, by label.
        request: `plan` says how long and how often, `cuda_graphs` whether graphs are tried.
        failures: Why some models do not run; those that fail here are added.
        own: Errors that are the model's own, and leave the others their times.
        waiting_clock: Tells how long the timing thread had no processor.
    """
    plan = SimpleNamespace(**request["plan"])
    warm = each(models, lambda model: model.warm_up(plan), failures, own)
    if request["cuda_graphs"]:
        each({label: models[label] for label in warm}, lambda model: model.use_graph(), failures, own)
    models = {label: models[label] for label in warm if label not in failures}
    graphs = [str(model.facts["cuda_graph"]) for model in models.values()]
    refusals = [graph for graph in graphs if graph not in ("", "used")]
    if refusals:
        # Models with and without are not compared.
        for model in models.values():
            model.drop_graph()

    def visit_of(label: str) -> Visit:
        def visit(timed_runs: int, refill: bool) -> list[float]:
            found = each({label: models[label]}, lambda model: model.visit(timed_runs, refill), failures, own)
            if not found:
                raise _FailedTurnError
            return list(found[label])

        return visit

    timing = _those_that_run({label: visit_of(label) for label in models}, plan, warm, failures, waiting_clock)
    return {
        **models[next(iter(timing.runs))].facts,
        "cuda_graph": (refusals or graphs)[0],
        "runs": timing.runs,
        "rounds": timing.rounds,
        "failures": failures,
        "waiting_share": min(timing.waiting_share, 1.0),
    }


def _those_that_run(
    visits: dict[str, Visit], plan: Any, seconds: Facts, failures: dict[str, str], waiting_clock: Clock
) -> Timing:
    """Time models in turns. Where one fails, the others start anew without it: in each round all have their turn."""
    while visits:
        try:
            seconds_per_sweep = sum(seconds[label] for label in visits)
            return take_turns(visits, plan, seconds_per_sweep, waiting_clock=waiting_clock)
        except _FailedTurnError:
            visits = {label: visit for label, visit in visits.items() if label not in failures}
    raise RuntimeError("; ".join(dict.fromkeys(failures.values())))


def each(
    items: Facts,
    work: Callable[[Any], Any],
    failures: dict[str, str],
    own: tuple[type[Exception], ...] = (Exception,),
) -> Facts:
    """Return what `work` makes of each item; those that it fails on go to `failures` with the reason."""
    done: Facts = {}
    for label, item in items.items():
        try:
            done[label] = work(item)
        except own as error:
            # Whatever a runtime raises is told to the machine that asked; of Edgesmith's own errors the first line.
            failures[label] = f"{type(error).__name__}: {getattr(error, 'what', error)}"[:2000]
    return done
