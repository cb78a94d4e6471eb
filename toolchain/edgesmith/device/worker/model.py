"""What the worker asks of a model, whatever it runs in."""

import time
from typing import Any

from .archive import Facts
from .turns import Plan, visit, warm_up


class WorkerModel:
    """A loaded model. Subclasses say how it runs; this times single runs."""

    def __init__(self, **facts: str) -> None:
        self.names: list[str] = []
        """Names of the outputs."""
        self.facts: Facts = {"cuda_graph": "", **facts}
        """What makes its numbers comparable."""

    def set_inputs(self, arrays: Facts) -> None:
        """Take the inputs of the next runs."""
        raise NotImplementedError

    def run(self) -> Any:
        """Run once, from inputs in place to outputs in place."""
        raise NotImplementedError

    def outputs(self) -> Facts:
        """Return the outputs for the present inputs, by name."""
        raise NotImplementedError

    def times(self, request: Facts) -> list[float]:
        """Return the times of single runs in milliseconds, after untimed ones."""
        for _ in range(request["warmup_runs"]):
            self.run()
        if request["cuda_graphs"]:
            self.use_graph()
        times: list[float] = []
        end = time.perf_counter() + request["seconds"]
        while len(times) < request["fewest_runs"] or (time.perf_counter() < end and len(times) < request["most_runs"]):
            started = time.perf_counter()
            self.run()
            times.append((time.perf_counter() - started) * 1e3)
        return times

    def warm_up(self, plan: Plan) -> float:
        """Run until times are stable, and return the time of one run in seconds."""
        return warm_up(self.run, plan)

    def visit(self, timed_runs: int, refill: bool) -> list[float]:
        """Return the times of single runs in milliseconds, after an untimed one where `refill` says so."""
        return visit(self.run, timed_runs, refill)

    def use_graph(self) -> None:
        """Let later runs on the same inputs be one launch, where the runtime can; the facts say whether it did."""

    def drop_graph(self) -> None:
        """Let later runs be many launches again."""

    def describe(self) -> tuple[str, str]:
        """Return the runtime's own description of its layers and of their times; nothing where it has none."""
        return "", ""
