"""Whatever is bundled passes the suite that we ask of others.

By default a method repeats its runs on the smallest and the largest graph that it applies to, and one target of each
class is lowered to. The thorough run, on every graph, in another process and for every target, is marked slow.
"""

import pytest

from edgesmith.host.loader import load_registry
from edgesmith.testing import conformance

REGISTRY = load_registry(plugins=False)

QUICK_OPTIONS = {
    "quantize-auto": {"time_budget_s": 0.5},
    "recover": {"steps": 2},
    "analyse-units": {"attribute_labels": [0]},
    "remove-blocks": {"keep_first": 0, "gate_steps": 1},
    "share-blocks": {"keep_first": 0, "keep_last": 0},
    "static-attention": {"choose": "first"},
}
"""Options that make a search or a training short, or without which a method has nothing to do. They are in every run,
so their own edges are not tried.
"""

RECORDS = {
    record.name: record
    for records in (REGISTRY.methods(), REGISTRY.metrics(), REGISTRY.runners(), REGISTRY.lints(), REGISTRY.frontends())
    for record in records
}
TARGETS = {record.name: record for record in REGISTRY.targets()}
ONE_OF_EACH_CLASS = {record.entry: name for name, record in TARGETS.items()}.values()
"""Targets that differ in their profile only are checked one for all by default."""


def failures(name: str, **settings) -> dict[str, str]:
    checks = conformance(REGISTRY, name, options=QUICK_OPTIONS.get(name), **settings)
    assert checks
    results = {str(check): check() for check in checks}
    return {check: str(result) for check, result in results.items() if result.status == "failed"}


@pytest.mark.parametrize("name", RECORDS)
def test_it_conforms(name):
    assert failures(name, thorough=False) == {}


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_one_target_of_each_class_conforms(name):
    assert failures(name, thorough=False) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(record.name for record in REGISTRY.methods()), *TARGETS])
def test_it_conforms_on_every_graph_and_in_another_process(name, request):
    if "slow" not in request.config.option.markexpr:
        pytest.skip("heavy; run `pytest -m slow`")
    assert failures(name) == {}
