"""What Edgesmith itself registers is what its records say."""

import pytest

from edgesmith.host.loader import load_registry

REGISTRY = load_registry(plugins=False)
RECORDS = [record for plugin in REGISTRY.plugins for record in plugin.records]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{type(record).__name__}-{record.name}")
def test_every_record_loads_and_can_be_built_without_arguments(record):
    assert callable(REGISTRY.load(record))
    assert REGISTRY.load(record)() is not None


@pytest.mark.parametrize("record", REGISTRY.methods(), ids=lambda record: record.name)
def test_every_method_has_options_with_defaults_and_help(record):
    options = REGISTRY.options(record)
    REGISTRY.validate_options(record, {})
    assert options.model_config.get("extra") == "forbid"
    assert all(field.description for field in options.model_fields.values())


@pytest.mark.parametrize("target", REGISTRY.targets(), ids=lambda record: record.name)
def test_every_target_names_a_runner_that_is_there(target):
    assert REGISTRY.runner(target.runner)
    assert REGISTRY.load(target).dialect.name
