"""Looking things up, loading classes, and validating options."""

import io
import json
import logging
import sys
from dataclasses import fields, replace
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from edgesmith.errors import PluginError, RecipeError
from edgesmith.host.interfaces import Method
from edgesmith.host.records import Guarantee, Kind, LintRecord, MethodRecord, Needs, Order, TargetRecord, Tier
from edgesmith.host.registry import Registry
from edgesmith.host.validation import check_record
from edgesmith.host.verdict import Verdict
from edgesmith.testing import isolated_registry

HERE = "registry_under_test"


class Inner(BaseModel):
    depth: int = Field(default=1, ge=1, le=3)


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ratio: float = Field(default=0.5, ge=0, lt=1)
    criterion: str = Field(default="magnitude", pattern="magnitude|taylor")
    inner: Inner = Inner()


class RequiredOption(BaseModel):
    path: str


class NotJson(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": object()})


class Copy(Method[Options]):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return model.clone()


class HalfDone(Method[Options]):
    def check(self, model, context):
        return Verdict.ok()


def find_nothing(model, dialect):
    return ()


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Make this file's classes importable under a name that records can hold."""
    module = ModuleType(HERE)
    for value in (Inner, Options, RequiredOption, NotJson, Copy, HalfDone, find_nothing):
        setattr(module, value.__name__, value)
    monkeypatch.setitem(sys.modules, HERE, module)


RECORD = MethodRecord(
    name="channel-prune",
    version="1.0",
    summary="Removes channels.",
    entry=f"{HERE}:Copy",
    kind=Kind.PRUNE,
    options=f"{HERE}:Options",
    guarantee=Guarantee.LOSSY,
)


def registry_of(*records, distribution="edge-prune", version="0.3") -> Registry:
    registry = isolated_registry(records=records, distribution=distribution, version=version)
    assert registry.tombstones == ()
    return registry


def clashing() -> Registry:
    first = registry_of(RECORD)
    second = registry_of(replace(RECORD, summary="Removes other channels."), distribution="other-prune", version="2.0")
    return Registry([*first.plugins, *second.plugins])


def test_a_name_of_two_distributions_is_an_error_only_when_asked_for_bare():
    registry = clashing()
    assert len(registry.methods()) == 2
    assert registry.method("other-prune:channel-prune").summary == "Removes other channels."
    assert registry.distribution_of(registry.method("edge-prune:channel-prune")) == "edge-prune 0.3"
    with pytest.raises(PluginError) as caught:
        registry.method("channel-prune")
    assert "edge-prune 0.3 and from other-prune 2.0" in caught.value.what
    assert "`edge-prune:channel-prune` or `other-prune:channel-prune`" in caught.value.fix


def test_equal_records_of_two_distributions_keep_their_owners():
    first, second = registry_of(RECORD), registry_of(replace(RECORD), distribution="other-prune")
    registry = Registry([*first.plugins, *second.plugins])
    owners = [registry.plugin_of(record).distribution for record in registry.methods()]
    assert owners == ["edge-prune", "other-prune"]


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(PluginError) as caught:
        registry_of(RECORD).method("chanel-prune")
    assert caught.value.what == "there is no method 'chanel-prune'"
    assert "Did you mean `channel-prune`?" in caught.value.fix


def test_an_unknown_distribution_gets_the_nearest_qualified_name():
    with pytest.raises(PluginError) as caught:
        registry_of(RECORD).method("edge-prun:channel-prune")
    assert "`edge-prune:channel-prune`" in caught.value.fix


def test_names_of_other_record_types_do_not_meet():
    target = TargetRecord(name="channel-prune", version="1.0", summary="A target.", entry="absent:Target")
    registry = registry_of(RECORD, target)
    assert registry.method("channel-prune") is not registry.target("channel-prune")
    with pytest.raises(PluginError, match="no lint 'channel-prune'"):
        registry.lint("channel-prune")


def test_load_returns_the_class_and_imports_it_once():
    registry = registry_of(RECORD)
    assert registry.load(registry.method("channel-prune")) is Copy
    assert registry.load(registry.method("channel-prune")) is Copy


@pytest.mark.parametrize(
    ("entry", "fragment"),
    [
        ("a_package_that_does_not_exist:Copy", "ModuleNotFoundError"),
        (f"{HERE}:Absent", "AttributeError"),
        (f"{HERE}:Options", "is not a subclass of Method"),
        (f"{HERE}:find_nothing", "is not a subclass of Method"),
        (f"{HERE}:HalfDone", "is not every method of Method defined"),
    ],
)
def test_an_entry_that_is_not_what_it_should_be_names_the_plugin(entry, fragment):
    registry = registry_of(replace(RECORD, entry=entry))
    with pytest.raises(PluginError) as caught:
        registry.load(registry.method("channel-prune"))
    assert "method 'channel-prune' of edge-prune 0.3" in caught.value.what
    assert fragment in caught.value.what


def test_a_module_that_fails_shows_its_traceback_to_whoever_traces(tmp_path, monkeypatch, caplog):
    (tmp_path / "fails_when_loaded.py").write_text("def prepare():\n    return {}['weights']\nprepare()\n")
    monkeypatch.syspath_prepend(tmp_path)
    caplog.set_level(logging.DEBUG, "edgesmith")
    registry = registry_of(replace(RECORD, entry="fails_when_loaded:Copy"))
    with pytest.raises(PluginError, match="fails with KeyError"):
        registry.load(registry.method("channel-prune"))
    assert "method channel-prune of edge-prune 0.3: importing fails_when_loaded:Copy: the whole tr" in caplog.text
    assert "fails_when_loaded.py" in caplog.text and "in prepare" in caplog.text


def test_a_module_that_a_record_names_is_told_nothing_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "asks_when_loaded.py").write_text("input()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("for the command"))
    registry = registry_of(replace(RECORD, entry="asks_when_loaded:Copy"))
    with pytest.raises(PluginError, match=r"'channel-prune' of edge-prune 0\.3 .* fails with EOFError"):
        registry.load(registry.method("channel-prune"))


def test_options_that_are_no_pydantic_model_name_the_plugin():
    registry = registry_of(replace(RECORD, options=f"{HERE}:Copy"))
    with pytest.raises(PluginError, match="not a pydantic model"):
        registry.options(registry.method("channel-prune"))


def test_a_schema_that_is_no_json_names_the_plugin():
    registry = registry_of(replace(RECORD, options=f"{HERE}:NotJson"))
    (step,) = registry.schema()["$defs"]["Step"]["oneOf"]
    assert json.loads(json.dumps(step))["properties"]["options"]["description"].startswith(
        "method channel-prune 1.0 from edge-prune 0.3: its options crashed with TypeError: Object of type object is not"
    )


def test_a_lint_is_a_callable():
    lint = LintRecord(name="nothing", version="1.0", summary="Finds nothing.", entry=f"{HERE}:find_nothing")
    registry = registry_of(lint)
    assert registry.load(registry.lint("nothing")) is find_nothing


def validate(options, record=RECORD):
    registry = registry_of(record)
    return registry.validate_options(registry.method(record.name), options)


def test_options_get_their_defaults():
    assert validate({"ratio": 0.25}) == Options(ratio=0.25)


def test_an_unknown_option_gets_the_nearest_one():
    with pytest.raises(RecipeError) as caught:
        validate({"ration": 0.25})
    assert caught.value.what == "method 'channel-prune' has no option 'ration'"
    assert "`ratio`" in caught.value.fix


@pytest.mark.parametrize(
    ("options", "what", "expected"),
    [
        ({"ratio": 1.5}, "option 'ratio' of method 'channel-prune' is 1.5", "a number at least 0.0 and below 1.0"),
        ({"ratio": "much"}, "option 'ratio' of method 'channel-prune' is 'much'", "a number at least 0.0"),
        ({"criterion": "luck"}, "is 'luck'", "a text matching magnitude|taylor"),
        ({"inner": {"depth": 9}}, "option 'inner.depth'", "a mapping"),
    ],
)
def test_an_option_outside_its_range_names_the_range(options, what, expected):
    with pytest.raises(RecipeError) as caught:
        validate(options)
    assert what in caught.value.what
    assert expected.replace(".0", "") in caught.value.expected.replace(".0", "")


def nested_aliases():
    """Return a list that is small in memory and would print as 9 ** 30 words."""
    value = ["much"]
    for _ in range(30):
        value = [value] * 9
    return value


@pytest.mark.parametrize(
    "value",
    [nested_aliases(), {"a": nested_aliases()}, "x" * 10_000, 1 << 50_000],
    ids=["list", "mapping", "text", "number"],
)
def test_a_hostile_option_cannot_blow_up_its_own_error(value):
    with pytest.raises(RecipeError) as caught:
        validate({"criterion": value})
    assert len(str(caught.value)) < 1000


def test_a_hostile_record_cannot_blow_up_its_own_error():
    with pytest.raises(PluginError) as caught:
        check_record(replace(RECORD, version=nested_aliases()), MethodRecord)
    assert len(str(caught.value)) < 1000


def test_a_missing_option_is_named():
    with pytest.raises(RecipeError, match="misses the option 'path'"):
        validate({}, replace(RECORD, options=f"{HERE}:RequiredOption"))


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=4), max_size=4))
def test_any_mapping_gives_options_or_a_recipe_error(options):
    # The fixture that makes `Options` importable lives as long as the test, which is all that is needed here.
    try:
        assert isinstance(validate(options), Options)
    except RecipeError as error:
        assert "'channel-prune'" in error.what
        assert error.expected
        assert error.fix


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"name": "Channel Prune"}, "malformed name"),
        ({"name": "-prune"}, "malformed name"),
        ({"name": "dist:prune"}, "malformed name"),
        ({"name": 7}, "name=7"),
        ({"version": " "}, "no version"),
        ({"summary": ""}, "no one-line summary"),
        ({"summary": "two\nlines"}, "no one-line summary"),
        ({"entry": "no_colon"}, "entry='no_colon'"),
        ({"entry": "a..b:C"}, "entry='a..b:C'"),
        ({"entry": "a:b()"}, "entry="),
        ({"options": ""}, "options=''"),
        ({"kind": "prune"}, "kind='prune'"),
        ({"guarantee": Guarantee.TOLERANCE}, "tolerance of 0.0"),
        ({"deterministic": 1}, "deterministic=1"),
        ({"tags": "int8"}, "tags='int8'"),
        ({"tags": ("int8", 4)}, "tags=('int8', 4)"),
        ({"needs": Needs(packages=("torch >>> 2",))}, "'torch >>> 2'"),
        ({"needs": Needs(data="yes")}, "data='yes'"),
        ({"order": Order(before="quantize")}, "before='quantize'"),
        ({"needs": None}, "needs=None"),
    ],
)
def test_a_malformed_record_is_refused_with_what_is_wrong(changes, fragment):
    with pytest.raises(PluginError) as caught:
        check_record(replace(RECORD, **changes), MethodRecord)
    assert fragment in caught.value.what


def test_a_target_record_of_the_wrong_tier_is_refused():
    record = TargetRecord(name="board", version="1", summary="A board.", entry="a:B", tier="device")
    with pytest.raises(PluginError, match="tier='device'"):
        check_record(record, TargetRecord)
    check_record(replace(record, tier=Tier.DEVICE), TargetRecord)


def test_required_plugins_must_be_loaded_and_in_range():
    registry = registry_of(RECORD)
    registry.require(["edge-prune>=0.2", "Edge_Prune<1"])
    with pytest.raises(PluginError, match=r"edge-prune>=1 \(loaded: 0.3\); other>=1 \(not loaded\)"):
        registry.require(["edge-prune>=1", "other>=1"])


def test_schema_offers_each_method_with_its_options():
    schema = registry_of(RECORD).schema()
    (choice,) = schema["$defs"]["Step"]["oneOf"]
    assert choice["properties"]["method"] == {"enum": ["channel-prune", "edge-prune:channel-prune"]}
    assert choice["properties"]["options"]["properties"]["ratio"]["exclusiveMaximum"] == 1
    reference = choice["properties"]["options"]["properties"]["inner"]["$ref"]
    assert schema["$defs"][reference.removeprefix("#/$defs/")]["properties"]["depth"]["maximum"] == 3
    assert schema["properties"]["steps"]["items"] == {"$ref": "#/$defs/Step"}


def test_schema_asks_for_qualified_names_where_a_name_has_two_owners():
    choices = clashing().schema()["$defs"]["Step"]["oneOf"]
    assert [choice["properties"]["method"]["enum"] for choice in choices] == [
        ["edge-prune:channel-prune"],
        ["other-prune:channel-prune"],
    ]


def test_schema_survives_a_plugin_whose_options_do_not_import():
    registry = registry_of(RECORD, replace(RECORD, name="other", options="absent_package:Options"))
    choices = registry.schema()["$defs"]["Step"]["oneOf"]
    assert "absent_package" in choices[1]["properties"]["options"]["description"]
    assert "ratio" in choices[0]["properties"]["options"]["properties"]


def test_schema_makes_options_required_where_one_of_them_is():
    registry = registry_of(replace(RECORD, options=f"{HERE}:RequiredOption"))
    (choice,) = registry.schema()["$defs"]["Step"]["oneOf"]
    assert set(choice["required"]) == {"method", "options"}


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.tuples(st.text(max_size=4))


@given(st.dictionaries(st.sampled_from([field.name for field in fields(MethodRecord)]), VALUES, min_size=1))
def test_a_record_of_any_values_is_taken_or_refused_in_words(changes):
    try:
        check_record(replace(RECORD, **changes), MethodRecord)
    except PluginError as error:
        assert error.expected
    else:
        assert all(type(value) is type(getattr(RECORD, name)) or name == "tolerance" for name, value in changes.items())


@given(st.text(max_size=12) | st.sampled_from(["channel-prune", "edge-prune:channel-prune", ":channel-prune"]))
def test_any_name_gives_a_record_or_a_plugin_error(name):
    registry = registry_of(RECORD)
    try:
        assert registry.method(name) is registry.methods()[0]
    except PluginError as error:
        assert "there is no method" in error.what
    else:
        assert name in ("channel-prune", "edge-prune:channel-prune")
