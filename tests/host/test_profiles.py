"""Device profiles: read, validated, extended by a user's own file, and part of what identifies a target."""

import json
from pathlib import Path

import pytest

from edgesmith.errors import TargetError
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith.profile import (
    Device,
    Formats,
    PowerMode,
    Profile,
    Runtime,
    extend,
    load_profile,
    parse_profile,
    read_facts,
)

SHIPPED = "edgesmith_tensorrt:profiles/jetson-orin-nano.toml"


@pytest.fixture(scope="module")
def registry():
    return load_registry()


BOARD = 'extends = "jetson-orin-nano"\nname = "my-board"\nsummary = "Ours."\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "my-board.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_profile_is_valid_and_named_as_its_target(registry):
    records = [record for record in registry.targets() if record.profile]
    assert len(records) >= 8
    for record in records:
        profile = load_profile(record.profile)
        assert (profile.name, profile.summary) == (record.name, record.summary)
        assert not set(profile.formats.hardware) & set(profile.formats.absent)


def test_a_users_profile_changes_facts_and_identity(registry, tmp_path):
    text = (
        'extends = "jetson-orin-nano"\nname = "my-board"\nsummary = "Ours."\n[device]\nmemory_bytes = 4_000_000_000\n'
    )
    record, target = find_target(registry, str(write(tmp_path, text)))
    base, _ = find_target(registry, "jetson-orin-nano")
    assert (record.name, target.profile.device.memory_bytes) == ("my-board", 4_000_000_000)
    assert target.profile.device.compute_capability == "8.7"
    assert record.version != base.version
    assert registry.distribution_of(record) == registry.distribution_of(base)
    other, _ = find_target(registry, str(write(tmp_path, text.replace("4_000", "5_000"))))
    assert other.version != record.version


@pytest.mark.parametrize(
    ("device", "runner"),
    [
        ('architectures = ["aarch64"]', "reference"),
        ('systems = ["QNX"]', "reference"),
        ('architectures = ["x86_64"]', "local"),
        ('architectures = ["aarch64", "x86_64"]\nsystems = ["Linux"]', "local"),
        ("memory_bytes = 4_000_000_000", "local"),
    ],
)
def test_another_machine_than_this_one_is_not_timed_here(registry, tmp_path, monkeypatch, device, runner):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    text = f'extends = "onnx-cpu"\nname = "my-board"\n[device]\n{device}\n'
    assert find_target(registry, str(write(tmp_path, text)))[0].runner == runner


def test_the_profile_as_artifacts_keep_it_is_the_same_target(registry, tmp_path):
    record, target = find_target(registry, str(write(tmp_path, BOARD + "[device]\nmemory_bytes = 4_000_000_000\n")))
    facts = {"extends": record.extends, **target.profile.model_dump(mode="json", exclude_none=True)}
    kept = tmp_path / "profile.json"
    kept.write_text(json.dumps(facts), encoding="utf-8")
    again, same = find_target(registry, str(kept))
    assert (again.name, again.version, same.profile) == (record.name, record.version, target.profile)
    kept.write_text("[]", encoding="utf-8")
    with pytest.raises(TargetError, match="cannot be read: it is no table"):
        find_target(registry, str(kept))


def test_a_fact_that_a_user_changes_does_not_keep_the_source_of_the_other_one(registry, tmp_path):
    text = BOARD + "[device]\nmemory_bytes = 4_000_000_000\n"
    base = load_profile(SHIPPED)
    _, target = find_target(registry, str(write(tmp_path, text)))
    assert target.profile.device.source == f"my-board.toml says memory_bytes; all else: {base.device.source}"
    assert target.profile.formats.source == base.formats.source
    _, cited = find_target(registry, str(write(tmp_path, text + 'source = "Our data sheet"\n')))
    assert cited.profile.device.source == "Our data sheet"


def test_runtimes_of_a_user_without_a_source_are_cited_as_the_file(registry, tmp_path):
    runtimes = '[[runtimes]]\nname = "TensorRT"\nversions = ">=10,<11"\nopset = 21\n'
    both = BOARD + runtimes + runtimes + 'source = "Our data sheet"\n'
    _, target = find_target(registry, str(write(tmp_path, both)))
    sources = [each.source for each in target.profile.runtimes]
    assert sources == ["my-board.toml says name, versions, opset", "Our data sheet"]


@pytest.mark.parametrize(
    ("text", "field", "expected", "fix"),
    [
        ("[device]\nmemory_byte = 4\n", "device.memory_byte", Device, "Did you mean `memory_bytes`?"),
        ("[[runtimes]]\nnames = 'TensorRT'\n", "runtimes.0.name", Runtime, "Correct it"),
        ("[formats]\nhardware = ['int3']\n", "formats.hardware.0", Formats, "Correct it"),
        ("[[power.modes]]\nname = '7W'\nwatt = 7\n", "power.modes.0.watt", PowerMode, "Did you mean `watts`?"),
        ("[alignments]\nint8 = 4\n", "alignments", Profile, "Did you mean `alignment`?"),
    ],
)
def test_a_wrong_field_is_answered_with_those_of_its_table(registry, tmp_path, text, field, expected, fix):
    with pytest.raises(TargetError) as error:
        find_target(registry, str(write(tmp_path, BOARD + text)))
    assert f", {field}:" in error.value.what
    assert error.value.expected == f"the fields {', '.join(expected.model_fields)}"
    assert fix in error.value.fix


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "my-board"\n', "extends nothing"),
        ('extends = "jetson-orin-nano"\nname = "My Board"\n', "name"),
        ('extends = "jetson-orin-nano"\n[device]\nmemory_bytes = -1\n', "device.memory_bytes"),
        ('extends = "jetson-orin-nano"\n[device]\ncolour = "red"\n', "device.colour"),
        ('extends = "jetson-orin-nano"\n[formats]\nhardware = ["int3"]\n', "formats.hardware.0"),
        ("= broken", "cannot be read"),
        (BOARD + '[[runtimes]]\nname = "TensorRT"\nversions = "banana"\nopset = 21\nsource = "x"\n', "banana"),
        (BOARD + '[[runtimes]]\nname = "Tensorrt"\nversions = ">=10"\nopset = 21\nsource = "x"\n', "runtime Tensorrt"),
        (BOARD + '[device]\ncompute_capability = "99.9"\n', r"compute capability 99\.9"),
        (BOARD.replace("nano", "nx") + "[dla]\ncore = 5\n", "core 5 of "),
        (BOARD.replace("my-board", "jetson-orin-nano"), "as an installed target"),
        ("#" * 200_000, "200000 bytes"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_place(registry, tmp_path, text, words):
    with pytest.raises(TargetError, match=words):
        find_target(registry, str(write(tmp_path, text)))


def test_an_unknown_base_is_named(registry, tmp_path):
    path = write(tmp_path, 'extends = "jetson-orin-nona"\nname = "x"\n')
    with pytest.raises(
        TargetError, match=f"In profile {path}, extends: there is no target 'jetson-orin-nona'"
    ) as error:
        find_target(registry, str(path))
    assert "Did you mean `jetson-orin-nano`?" in error.value.fix


def test_a_missing_profile_file_is_an_error_of_the_family(registry, tmp_path):
    with pytest.raises(TargetError, match="cannot be read"):
        find_target(registry, str(tmp_path / "none.toml"))


def test_facts_without_a_source_are_refused():
    facts = read_facts(SHIPPED)
    del facts["device"]["source"]
    with pytest.raises(TargetError, match=r"device\.source"):
        parse_profile(facts, "test")


def test_extending_replaces_lists_and_merges_tables():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert extend(base, {"a": {"c": [4]}, "e": 5}) == {"a": {"b": 1, "c": [4]}, "d": 3, "e": 5}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_the_opset_is_what_every_runtime_reads():
    facts = read_facts(SHIPPED)
    facts["runtimes"][0]["opset"] = 19
    assert parse_profile(facts, "test").opset == 19
