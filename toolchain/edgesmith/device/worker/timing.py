"""Times several models in turns."""

from pathlib import Path
from types import SimpleNamespace

from .archive import Facts, read_batch
from .machine import cool_down, state
from .running import open_model
from .turns import take_turns


def time_in_turns(request: Facts, folder: Path) -> Facts:
    """Load all models of a request at once, time them in turns on one batch, and return what was seen."""
    import numpy

    plan = SimpleNamespace(**request["plan"])
    models = {label: open_model({**request, "model": file}, folder) for label, file in request["models"].items()}
    with numpy.load(folder / request["batch"], allow_pickle=False) as archive:
        inputs = read_batch(archive, 0, request["inputs"])
    for model in models.values():
        model.set_inputs(inputs)
    waited = cool_down(request["cool_below_celsius"]) if request["cool_below_celsius"] else 0.0
    before = state()
    seconds = sum(model.warm_up(plan) for model in models.values())
    if request["cuda_graphs"]:
        for model in models.values():
            model.use_graph()
    graphs = [str(model.facts["cuda_graph"]) for model in models.values()]
    refusals = [graph for graph in graphs if graph not in ("", "used")]
    if refusals:
        # Models with and without are not compared.
        for model in models.values():
            model.drop_graph()
    timing = take_turns({label: model.visit for label, model in models.items()}, plan, seconds)
    after = state()
    facts = next(iter(models.values())).facts
    return {
        **facts,
        "cuda_graph": (refusals or graphs)[0],
        "runs": timing.runs,
        "rounds": timing.rounds,
        "waiting_share": min(timing.waiting_share, 1.0),
        "cooling_seconds": waited,
        "before": before,
        "after": after,
    }
