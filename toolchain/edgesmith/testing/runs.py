"""Runs whole recipes in this process, with nothing but the plugins that a test names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith import builtin
from edgesmith.api import Settings, compile
from edgesmith.data import RunData
from edgesmith.host.registry import Registry
from edgesmith.measure.runner import LatencyPlan
from edgesmith.testing.data import tiny_data
from edgesmith.testing.fakes import FAKE_TARGET, fake_runner, fake_target
from edgesmith.testing.registry import isolated_registry

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact
    from edgesmith.model import Model
    from edgesmith.recipe import Recipe

QUICK = LatencyPlan(warmup_runs=1, runs_per_visit=1, min_rounds=3, max_rounds=3, max_seconds=1.0)
"""Times enough to see that a runner works, and too few to believe."""


def run_recipe(
    registry: Registry,
    model: "Model",
    recipe: "Sequence[str] | Mapping[str, object] | Recipe",
    *,
    out: Path,
    target: str = FAKE_TARGET,
    data: RunData | None = None,
    latency_ms: Mapping[str, float] | None = None,
) -> "Artifact":
    """Compile `model` as `edgesmith.compile` does and return the artifact, whose `ledger` holds what a report shows.

    Runs with the same folder `out` share a store, so the second takes finished steps from it.

    Args:
        registry: The plugins under test. What the core brings, the fake target and the fake runner are added.
        model: What to compile.
        recipe: Names of methods, or a whole recipe.
        out: A folder for the artifact and the store.
        target: Name of the target.
        data: Calibration and evaluation data. The default is random samples for tiny models.
        latency_ms: Table of the fake runner.

    Raises:
        EdgesmithError: As `edgesmith.compile`.
    """
    steps = {"steps": [{"method": name} for name in recipe]} if isinstance(recipe, Sequence) else recipe
    return compile(
        model,
        out=out / "artifact",
        target=target,
        recipe=steps,
        data=data or RunData(tiny_data(model), tiny_data(model, seed=1)),
        settings=Settings(threads=1, store=out / "store", registry=equipped(registry, latency_ms), latency_plan=QUICK),
    )


def equipped(registry: Registry, latency_ms: Mapping[str, float] | None = None) -> Registry:
    """Return `registry` with the fake target and runner, and with what the core brings where that is missing."""
    core = () if registry.metrics() and registry.frontends() else (builtin,)
    added = isolated_registry(*core, fake_target(), fake_runner(latency_ms))
    return Registry([*registry.plugins, *registry.tombstones, *added.plugins])
