"""Whatever is bundled passes the suite that we ask of others.

By default a method repeats its runs on the smallest and the largest graph that it applies to. The thorough run, which
repeats them on every graph and in another process, is marked slow.
"""

import pytest

from edgesmith.host.loader import load_registry
from edgesmith.testing import conformance

REGISTRY = load_registry(plugins=False)

QUICK_OPTIONS = {"quantize-auto": {"time_budget_s": 0.5}}
"""Options that make a search short. They are in every run, so their own edges are not tried."""

# A validated device is asked by hand: see docs/targets.
RECORDS = [
    *REGISTRY.methods(),
    *REGISTRY.targets(),
    *REGISTRY.metrics(),
    *REGISTRY.runners(),
    *REGISTRY.lints(),
    *REGISTRY.frontends(),
]


def failures(name: str, **settings) -> dict[str, str]:
    checks = conformance(REGISTRY, name, options=QUICK_OPTIONS.get(name), **settings)
    assert checks
    results = {str(check): check() for check in checks}
    return {check: str(result) for check, result in results.items() if result.status == "failed"}


@pytest.mark.parametrize("name", [record.name for record in RECORDS])
def test_it_conforms(name):
    assert failures(name, thorough=False) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [record.name for record in REGISTRY.methods()])
def test_it_conforms_on_every_graph_and_in_another_process(name, request):
    if "slow" not in request.config.option.markexpr:
        pytest.skip("heavy; run `pytest -m slow`")
    assert failures(name) == {}
