"""Loading through real entry points: temporary distributions on sys.path, beside Edgesmith's own."""

import hashlib
import sys

import pytest

from edgesmith.errors import PluginError
from edgesmith.host.loader import load_registry
from edgesmith.host.registry import Registry

pytestmark = pytest.mark.usefixtures("without_first_imports")


def names(registry: Registry) -> list[str]:
    return [record.name for record in registry.methods()]


def test_own_plugins_come_through_the_same_door():
    registry = load_registry(plugins=False)
    assert {plugin.distribution for plugin in registry.plugins} == {"edgesmith"}
    assert "core" in [plugin.entry_point for plugin in registry.plugins]
    assert registry.tombstones == ()
    assert [record.name for record in registry.frontends()] == ["onnx", "torch-module", "transformers"]
    assert [record.name for record in registry.metrics()] == ["accuracy", "cosine", "perplexity", "sqnr", "top5"]
    assert registry.distribution_of(registry.runner("local")).startswith("edgesmith ")


def test_an_installed_plugin_is_found_by_its_entry_point(install):
    install("edge-prune")
    registry = load_registry()
    assert registry.distribution_of(registry.method("halve")) == "edge-prune 0.3"
    assert registry.method("edge-prune:halve") is registry.method("halve")


def test_plugins_are_loaded_sorted_by_distribution_whatever_the_path_says(install):
    for name in ("zebra", "alpha", "middle"):
        install(name, method=f"from-{name}")
    loaded = [plugin.distribution for plugin in load_registry().plugins if plugin.distribution != "edgesmith"]
    assert loaded == ["alpha", "middle", "zebra"]


def test_no_plugins_leaves_strangers_out_and_unimported(install):
    install("edge-prune")
    assert "halve" not in names(load_registry(plugins=False))
    assert "edge_prune" not in sys.modules


@pytest.mark.parametrize("name", ["edge-prune", "Edge_Prune", "main"])
def test_disable_takes_a_distribution_or_an_entry_point(install, name):
    install("edge-prune")
    assert "halve" not in names(load_registry(disable=[name]))


def test_disabling_what_is_not_there_is_an_error_with_the_nearest_name(install):
    install("edge-prune")
    with pytest.raises(PluginError, match="'edge-prun' to disable") as caught:
        load_registry(disable=["edge-prun"])
    assert "`edge-prune`" in caught.value.fix


@pytest.mark.parametrize(
    ("requires", "fragment"),
    [
        ("edgesmith>=99", "works with edgesmith >=99"),
        ("edgesmith<0.0.1", "works with edgesmith <0.0.1"),
        ("edgesmith", "declares no version range"),
        ([], "declares no version range"),
        ("numpy>=1", "declares no version range"),
        ('edgesmith>=0.1; extra == "test"', "declares no version range"),
        ("edgesmith >>> 1", "malformed requirement"),
    ],
)
def test_a_plugin_for_another_version_is_buried_without_importing_it(install, requires, fragment):
    install("edge-prune", requires=requires)
    registry = load_registry()
    (tombstone,) = registry.tombstones
    assert (tombstone.label, tombstone.stage) == ("edge-prune 0.3", "version")
    assert fragment in tombstone.error
    assert "edge_prune" not in sys.modules
    assert registry.runner("local").name == "local"


def test_the_range_is_found_among_other_requirements_and_spellings(install):
    install("edge-prune", requires=["numpy>=1", "Edgesmith>=0.0.1,<99"])
    assert "halve" in names(load_registry())


def test_a_broken_distribution_does_not_stop_its_neighbours(install):
    install("aaa-broken", source="import nothing_of_that_name")
    install("edge-prune")
    registry = load_registry()
    assert "halve" in names(registry)
    with pytest.raises(PluginError) as caught:
        registry.method("aaa-broken:anything")
    assert "aaa-broken 0.3 is broken: ModuleNotFoundError" in caught.value.what


def test_interrupting_an_import_interrupts(install):
    install("edge-prune", source="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_registry()


def test_an_entry_point_that_names_no_module_is_buried(install, tmp_path):
    install("edge-prune")
    (tmp_path / "edge-prune/edge_prune-0.3.dist-info/entry_points.txt").write_text(
        "[edgesmith]\nmain = edge_prune:register_methods\n"
    )
    (tombstone,) = load_registry().tombstones
    assert tombstone.stage == "api"
    assert "function" in tombstone.error


@pytest.mark.parametrize(
    "content",
    [b"[console_scripts]\nno-equals-sign\n", b"[edgesmith]\nno-equals-sign\n", b"[edgesmith]\nmain = \xff\n"],
    ids=["of another group", "of ours", "not UTF-8"],
)
def test_entry_points_of_any_distribution_that_cannot_be_read_break_no_command(install, tmp_path, caplog, content):
    install("edge-prune")
    install("edge-sound", method="quarter")
    (tmp_path / "edge-prune/edge_prune-0.3.dist-info/entry_points.txt").write_bytes(content)
    registry = load_registry()
    (tombstone,) = registry.tombstones
    assert tombstone.label == "edge-prune 0.3" and tombstone.entry_point == "entry_points.txt"
    assert "entry_points.txt" in tombstone.error and str(tmp_path / "edge-prune") in tombstone.error
    assert "edge-prune: its entry_points.txt" in caplog.text
    assert {"quarter", "quantize-int8"} <= set(names(registry))
    assert load_registry(disable=["edge-prune"]).tombstones == ()


def test_the_first_distribution_of_a_name_counts_beside_a_file_that_cannot_be_read(install, tmp_path):
    install("edge-sound", version="0.1")
    install("edge-prune")
    (tmp_path / "edge-prune/edge_prune-0.3.dist-info/entry_points.txt").write_text("no-equals-sign\n")
    folder = tmp_path / "later/edge_sound-0.2.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Name: Edge_Sound\nVersion: 0.2\n")
    (folder / "entry_points.txt").write_text("[edgesmith]\nmain = edge_sound\n")
    nameless = tmp_path / "later/nameless-1.dist-info"
    nameless.mkdir()
    (nameless / "METADATA").write_bytes(b"Name: \xff\n")
    sys.path.append(str(folder.parent))
    try:
        registry = load_registry()
    finally:
        sys.path.remove(str(folder.parent))
    assert registry.distribution_of(registry.method("halve")) == "edge-sound 0.1"


NAME, VERSION, RANGE = "Name: edge-prune\n", "Version: 0.3\n", "Requires-Dist: edgesmith>=0.1,<9\n"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("entry_points.txt", "[edgesmith]\nmain = edge-prune.module\n", "'edge-prune.module' cannot be a module"),
        ("METADATA", None, "no Name in its METADATA"),
        ("METADATA", NAME + RANGE, "no Version in its METADATA"),
        ("METADATA", VERSION + RANGE, "no Name in its METADATA"),
        ("METADATA", b"Name: \xff\n", "UnicodeDecodeError"),
    ],
)
def test_a_distribution_with_malformed_metadata_is_buried_alone(install, tmp_path, file, content, words):
    install("edge-prune")
    install("edge-sound", method="quarter")
    path = tmp_path / "edge-prune/edge_prune-0.3.dist-info" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    registry = load_registry()
    (tombstone,) = registry.tombstones
    assert words in tombstone.traceback
    assert "its distribution in" in tombstone.error and str(tmp_path / "edge-prune") in tombstone.error
    assert "quarter" in names(registry) and "edge_prune" not in sys.modules
    assert load_registry(plugins=False).tombstones == load_registry(disable=[tombstone.distribution]).tombstones == ()


@pytest.mark.parametrize("declared", [1, 2])
def test_this_plugin_contract_and_the_one_before_are_taken(install, monkeypatch, declared):
    monkeypatch.setattr("edgesmith.host.hookspecs.API_VERSION", 2)
    install("edge-prune", source=f"EDGESMITH_API = {declared}")
    assert load_registry().tombstones == ()


OF_CONTRACT_1 = """
EDGESMITH_API = 1

import edgesmith

@edgesmith.hookimpl
def register_rules():
    return [edgesmith.LintRecord(name="old-rule", version="1", summary="A rule.", entry="absent:rule")]
"""


def rename_the_hook(module) -> None:
    """Let a plugin of contract 1 pass for one of contract 2, in which this hook has another name."""
    if hasattr(module, "register_rules"):
        module.register_lints = module.register_rules
        del module.register_rules


def test_a_shim_carries_a_plugin_of_the_contract_before_over(install, monkeypatch):
    install("edge-rules", source=OF_CONTRACT_1)
    (tombstone,) = load_registry().tombstones
    assert "register_rules" in tombstone.error
    sys.modules.pop("edge_rules")
    monkeypatch.setattr("edgesmith.host.hookspecs.API_VERSION", 2)
    monkeypatch.setattr("edgesmith.host.hookspecs.SHIMS", {1: rename_the_hook})
    registry = load_registry()
    assert registry.tombstones == ()
    assert registry.distribution_of(registry.lint("old-rule")) == "edge-rules 0.3"
    assert [one.name for one in registry.targets()]


def test_a_shim_leaves_plugins_of_the_present_contract_alone_and_its_faults_are_contained(install, monkeypatch):
    def broken(module) -> None:
        raise RuntimeError("the shim")

    monkeypatch.setattr("edgesmith.host.hookspecs.SHIMS", {1: broken})
    install("edge-prune")
    assert "halve" in names(load_registry())
    sys.modules.pop("edge_prune")
    monkeypatch.setattr("edgesmith.host.hookspecs.API_VERSION", 2)
    install("edge-old", source="EDGESMITH_API = 1")
    buried = {one.distribution: (one.stage, one.error) for one in load_registry().tombstones}
    assert buried["edge-old"] == ("api", "RuntimeError: the shim")


@pytest.mark.parametrize("declared", ["3", "0", "'1'"])
def test_any_other_plugin_contract_is_buried(install, monkeypatch, declared):
    monkeypatch.setattr("edgesmith.host.hookspecs.API_VERSION", 2)
    install("edge-prune", source=f"EDGESMITH_API = {declared}")
    (tombstone,) = load_registry().tombstones
    assert (tombstone.distribution, tombstone.stage) == ("edge-prune", "api")


def test_a_plugin_file_is_loaded_when_named_and_only_then(plugin_file, monkeypatch):
    path = plugin_file("local_method", "local")
    monkeypatch.chdir(path.parent)
    assert "local" not in names(load_registry(plugins=False))
    registry = load_registry(plugins=False, files=[path])
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    assert registry.distribution_of(registry.method("local")) == f"file:local_method 0+{content[:12]}"
    assert registry.method("file:local_method:local").name == "local"


def test_an_edited_plugin_file_is_another_version(plugin_file):
    path = plugin_file("local_method", "local")
    versions = []
    for comment in ("", "# edited"):
        path.write_text(path.read_text() + comment)
        versions.append(load_registry(plugins=False, files=[path]).plugins[-1].label)
    assert len(set(versions)) == 2


def test_an_edited_module_of_an_editable_install_is_another_version(install, tmp_path):
    install("edge-draft", editable=True)
    install("edge-fixed", method="quarter")

    def versions() -> dict[str, str]:
        plugins = load_registry().plugins
        return {each.distribution: each.version for each in plugins if each.distribution.startswith("edge-")}

    before = versions()
    assert versions() == before
    for name in ("edge_draft", "edge_fixed"):
        with (tmp_path / name.replace("_", "-") / f"{name}.py").open("a") as file:
            file.write("# edited\n")
    after = versions()
    assert before["edge-draft"].startswith("0.3+") and after["edge-draft"] != before["edge-draft"]
    assert before["edge-fixed"] == after["edge-fixed"] == "0.3"


def test_a_plugin_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(PluginError, match="is not a plugin file"):
        load_registry(files=[tmp_path / "absent.py"])


def test_two_registries_share_nothing(plugin_file):
    first = load_registry(plugins=False, files=[plugin_file("one", "first")])
    second = load_registry(plugins=False, files=[plugin_file("two", "second")])
    assert "second" not in names(first)
    assert "first" not in names(second)
    with pytest.raises(PluginError, match="not of this registry"):
        second.distribution_of(first.method("first"))


def test_a_duplicate_within_one_distribution_buries_the_second_entry_point(install, tmp_path):
    install("edge-prune")
    folder = tmp_path / "edge-prune"
    (folder / "edge_prune_more.py").write_text((folder / "edge_prune.py").read_text())
    (folder / "edge_prune-0.3.dist-info/entry_points.txt").write_text(
        "[edgesmith]\nmain = edge_prune\nmore = edge_prune_more\n"
    )
    registry = load_registry()
    sys.modules.pop("edge_prune_more")
    (tombstone,) = registry.tombstones
    assert tombstone.entry_point == "more"
    assert "'halve' is registered twice" in tombstone.error
    assert registry.method("halve").name == "halve"


def test_tracing_shows_each_call_into_a_plugin(install):
    install("edge-prune")
    lines: list[str] = []
    load_registry(trace=lines.append)
    assert "edge-prune:main.register_methods() -> 1 records" in lines


def test_a_source_tree_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    with pytest.raises(PluginError, match="own entry points are not installed"):
        load_registry()
