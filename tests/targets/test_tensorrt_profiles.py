"""Facts of the devices: complete, consistent with each other, and the documentation names every field."""

from importlib import resources
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from edgesmith.profile import Alignment, DeepLearningAccelerator, Device, Formats, Profile, Runtime, load_profile
from edgesmith_tensorrt import _LINTS, register_lints
from edgesmith_tensorrt.dialect import dialect_of
from edgesmith_tensorrt.gate import KNOWN, PROXIES

NAMES = sorted(
    file.name.removesuffix(".toml")
    for file in resources.files("edgesmith_tensorrt").joinpath("profiles").iterdir()
    if file.name.endswith(".toml")
)
DOCS = Path(__file__).parents[2] / "docs" / "targets"


@pytest.fixture(params=NAMES)
def profile(request) -> Profile:
    return load_profile(f"edgesmith_tensorrt:profiles/{request.param}.toml")


def test_every_device_of_the_family_has_a_profile():
    wanted = {"jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor", "h100"}
    assert wanted | {"rtx-30", "rtx-40", "rtx-50"} == set(NAMES)


def test_no_fact_is_missing(profile):
    assert profile.device.compute_capability in {*KNOWN, *PROXIES}
    assert profile.device.memory_bytes > 0
    assert profile.device.machines
    assert profile.alignment is not None
    assert (profile.alignment.float16, profile.alignment.int8) == (8, 16)
    groups = (profile.device, profile.formats, profile.alignment, *profile.runtimes, profile.dla, profile.power)
    assert all(len(group.source) > 10 for group in groups if group is not None)


def test_every_format_either_runs_or_says_why_not_and_what_instead(profile):
    formats = {"float8", "float4", "int4-weights", "int2-weights", "uint8"}
    for name in formats:
        assert (name in profile.formats.hardware) != (name in profile.formats.absent), name
    assert all(
        "use" in reason or "int4-weights" in reason or "takes" in reason for reason in profile.formats.absent.values()
    )


def test_newer_hardware_has_the_formats_of_its_compute_capability(profile):
    capability = float(profile.device.compute_capability)
    assert profile.has("float8") == (capability >= 8.9)
    assert profile.has("float4") == (capability >= 10.0)
    assert profile.has("bfloat16")


def test_versions_can_be_read_and_name_what_brings_them(profile):
    for runtime in profile.runtimes:
        assert "99.0" not in SpecifierSet(runtime.versions)
        assert 20 <= runtime.opset <= 26
        if profile.name.startswith("jetson"):
            assert "JetPack" in runtime.platform


def test_tensorrt_without_a_jetpack_is_on_no_board(profile):
    known = {each for each in ("10.16.2", "11.0.0", "11.3.1", "11.4.0", "11.4.1")
             if any(each in SpecifierSet(runtime.versions) for runtime in profile.runtimes)}  # fmt: skip
    if profile.name.startswith("jetson"):
        assert known == {"10.16.2", "11.4.1"}


def test_boards_share_their_memory_and_have_power_modes_and_cards_do_not(profile):
    is_board = profile.name.startswith("jetson")
    assert profile.device.unified_memory == is_board
    assert (profile.device.architectures == ("aarch64",)) == is_board
    assert (profile.power is not None) == is_board
    if profile.power is not None:
        assert len({mode.name for mode in profile.power.modes}) == len(profile.power.modes) >= 2


def test_only_two_boards_have_a_dla_and_none_builds_for_it_unasked(profile):
    assert (profile.dla is not None) == (profile.name in ("jetson-orin-nx", "jetson-agx-orin"))
    if profile.dla is not None:
        assert profile.dla.core is None
        assert "float16" in profile.dla.formats
        # TensorRT 10.8 to 11.4.0 have no DLA on Jetson.
        for versions in profile.dla.versions:
            assert not {"10.8", "11.0", "11.3"} & {v for v in ("10.8", "11.0", "11.3") if v in SpecifierSet(versions)}
        assert any("10.3" in SpecifierSet(versions) for versions in profile.dla.versions)


def test_the_dialect_follows_from_the_facts(profile):
    dialect = dialect_of(profile)
    assert dialect.opset == min(runtime.opset for runtime in profile.runtimes)
    assert (dialect.float8 == "hardware") == profile.has("float8")
    assert dialect.formats == set(profile.formats.hardware)
    assert dialect.activation.symmetric
    assert dialect.bias == "float"
    assert dialect.accelerator is None


def test_the_guide_names_every_field_of_a_profile():
    guide = (DOCS / "tensorrt.md").read_text(encoding="utf-8")
    for kind in (Device, Formats, Alignment, Runtime, DeepLearningAccelerator):
        missing = [name for name in kind.model_fields if f"`{name}`" not in guide]
        assert missing == []


def test_every_rule_is_registered_once_with_what_it_finds():
    records = register_lints()
    assert [record.name for record in records] == list(_LINTS)
    assert len({record.summary for record in records}) == len(records)
