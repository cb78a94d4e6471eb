"""Times several models in turns."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .archive import Facts, read_batch
from .machine import cool_down, state
from .model import WorkerModel
from .running import open_model
from .turns import take_turns


def time_in_turns(request: Facts, folder: Path) -> Facts:
    """Load all models of a request at once, time them in turns on one batch, and return what was seen.

    A model that does not load or run is left out, with the reason.
    """
    import numpy

    plan = SimpleNamespace(**request["plan"])
    with numpy.load(folder / request["batch"], allow_pickle=False) as archive:
        inputs = read_batch(archive, 0, request["inputs"])
    failures: dict[str, str] = {}

    def opened(file: str) -> WorkerModel:
        model = open_model({**request, "model": file}, folder)
        model.set_inputs(inputs)
        return model

    models = _each(request["models"], opened, failures)
    waited = cool_down(request["cool_below_celsius"]) if request["cool_below_celsius"] else 0.0
    before = state()
    warm = _each(models, lambda model: model.warm_up(plan), failures)
    if not warm:
        raise RuntimeError("; ".join(dict.fromkeys(failures.values())))
    models = {label: models[label] for label in warm}
    if request["cuda_graphs"]:
        for model in models.values():
            model.use_graph()
    graphs = [str(model.facts["cuda_graph"]) for model in models.values()]
    refusals = [graph for graph in graphs if graph not in ("", "used")]
    if refusals:
        # Models with and without are not compared.
        for model in models.values():
            model.drop_graph()
    timing = take_turns({label: model.visit for label, model in models.items()}, plan, sum(warm.values()))
    after = state()
    facts = next(iter(models.values())).facts
    return {
        **facts,
        "cuda_graph": (refusals or graphs)[0],
        "runs": timing.runs,
        "rounds": timing.rounds,
        "failures": failures,
        "waiting_share": min(timing.waiting_share, 1.0),
        "cooling_seconds": waited,
        "before": before,
        "after": after,
    }


def _each(items: Facts, work: Callable[[Any], Any], failures: dict[str, str]) -> Facts:
    """Return what `work` makes of each item; those that it fails on go to `failures` with the reason."""
    done: Facts = {}
    for label, item in items.items():
        try:
            done[label] = work(item)
        except Exception as error:  # noqa: BLE001  whatever a runtime raises is told to the machine that asked
            failures[label] = f"{type(error).__name__}: {error}"[:2000]
    return done
