"""What Edgesmith itself registers is what its records say."""

import pytest

from edgesmith.host.loader import load_registry
from edgesmith.host.records import LintRecord, TargetRecord
from edgesmith.host.targets import find_target

REGISTRY = load_registry(plugins=False)
RECORDS = [record for plugin in REGISTRY.plugins for record in plugin.records]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{type(record).__name__}-{record.name}")
def test_every_record_loads_what_it_names(record):
    assert callable(REGISTRY.load(record))
    if isinstance(record, TargetRecord):
        _, target = find_target(REGISTRY, record.name)
        assert (target.profile is not None) == bool(record.profile)
    elif not isinstance(record, LintRecord):
        assert REGISTRY.load(record)() is not None


@pytest.mark.parametrize("record", REGISTRY.methods(), ids=lambda record: record.name)
def test_every_method_has_options_with_defaults_and_help(record):
    options = REGISTRY.options(record)
    REGISTRY.validate_options(record, {})
    assert options.model_config.get("extra") == "forbid"
    assert all(field.description for field in options.model_fields.values())


@pytest.mark.parametrize("record", REGISTRY.methods(), ids=lambda record: record.name)
def test_what_a_record_says_it_needs_is_what_its_defaults_need(record):
    by_default = getattr(REGISTRY.validate_options(record, {}), "needs", record.needs)
    assert (record.needs.data, record.needs.labels) == (by_default.data, by_default.labels)


@pytest.mark.parametrize("target", REGISTRY.targets(), ids=lambda record: record.name)
def test_every_target_names_a_runner_that_is_there(target):
    assert REGISTRY.runner(target.runner)
    assert find_target(REGISTRY, target.name)[1].dialect.name == target.name
