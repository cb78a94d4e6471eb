"""What collections walk over while a step runs, and that files are closed at the end of a process."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from edgesmith import cli
from edgesmith.collector import collect_seldom, import_spared, spare_what_exists
from edgesmith.frontends import normalize
from edgesmith.host import step
from edgesmith.testing import isolated_registry, run_method, tiny_mlp

STEP_PLUGIN = Path(__file__).parent / "host" / "step_plugin.py"


class Ring:
    """An object that only a collection frees."""

    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def nothing_is_spared():
    gc.unfreeze()
    with spare_what_exists():
        pass  # so that objects of tests before lead to no collection in this one
    yield
    gc.unfreeze()


def test_collections_leave_out_what_existed_before_the_block_and_only_until_it_ends():
    older = weakref.ref(Ring())
    with spare_what_exists():
        younger = weakref.ref(Ring())
        gc.collect()
        assert older() is not None
        assert younger() is None
    gc.collect()
    assert older() is None
    assert gc.get_freeze_count() == 0


def test_an_inner_block_ends_nothing():
    older = weakref.ref(Ring())
    with spare_what_exists():
        with spare_what_exists():
            pass
        gc.collect()
        assert older() is not None


def test_frozen_objects_are_not_counted_one_by_one(monkeypatch):
    counted, original = [], gc.get_freeze_count
    monkeypatch.setattr(gc, "get_freeze_count", lambda: counted.append(original()))
    with spare_what_exists(), spare_what_exists():
        pass
    assert counted == [0]


def test_what_the_process_froze_itself_stays_frozen():
    older = weakref.ref(Ring())
    gc.freeze()
    with spare_what_exists():
        pass
    gc.collect()
    assert older() is not None


def test_garbage_of_one_block_after_another_does_not_pile_up():
    enough = len(gc.get_objects()) // 8
    rings = []
    for _ in range(8):
        with spare_what_exists():
            made = [Ring() for _ in range(enough)]
        rings.append(weakref.ref(made[0]))
        del made
    assert rings[0]() is None


def test_the_block_ends_with_an_exception():
    with pytest.raises(KeyError), spare_what_exists():
        raise KeyError
    assert gc.get_freeze_count() == 0


def test_a_command_collects_seldom_and_its_caller_as_before(monkeypatch):
    before, seen = gc.get_threshold(), []
    monkeypatch.setattr(cli, "app", lambda *_, **__: seen.append(gc.get_threshold()))
    assert cli.main(["targets"]) == 0
    assert seen[0] > before == gc.get_threshold()


@pytest.mark.parametrize("used", ["edgesmith.compile", "edgesmith.cli.main"])
def test_an_import_leaves_the_thresholds_alone(used):
    script = f"import gc, pkgutil; before = gc.get_threshold(); pkgutil.resolve_name({used!r})"
    subprocess.run([sys.executable, "-c", f"{script}; assert gc.get_threshold() == before"], check=True, timeout=60)


@pytest.mark.parametrize("used", ["edgesmith.compile", "edgesmith.cli.main", "edgesmith.collector.spare_what_exists"])
def test_a_file_in_a_cycle_is_flushed_when_the_process_ends(tmp_path, used):
    script = f"""
import pkgutil, sys
pkgutil.resolve_name({used!r})
class Holder: pass
holder = Holder()
holder.itself, holder.file = holder, open(sys.argv[1], "w")
holder.file.write("lines")
"""
    path = tmp_path / "written.txt"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)
    assert path.read_text() == "lines"


def test_steps_and_cleaning_spare_what_existed_before(monkeypatch):
    counts = []
    for module, name in ((step, "_rewrite"), (normalize, "check_graph")):
        original = getattr(module, name)

        def counted(*arguments, original=original):
            counts.append(gc.get_freeze_count())
            return original(*arguments)

        monkeypatch.setattr(module, name, counted)
    model = tiny_mlp()
    normalize.normalize(model.ir)
    run_method(isolated_registry(STEP_PLUGIN), "scale", model, {"factor": 2.0})
    assert len(counts) == 2
    assert min(counts) > 10_000
    assert gc.get_freeze_count() == 0


SPARED = """
import gc, sys
from edgesmith.collector import collect_seldom, import_spared
with collect_seldom(process_ends={ends}):
    import_spared("decimal", "json")
    print(gc.get_freeze_count() > 0, gc.isenabled(), "decimal" in sys.modules)
    class Holder: pass
    Holder.file = open(sys.argv[1], "w")
    Holder.file.write("of a class, ")
    holder = Holder()
    holder.itself, holder.file = holder, open(sys.argv[1] + "2", "w")
    holder.file.write("lines")
"""


@pytest.mark.parametrize("ends", [True, False])
def test_what_comes_behind_spared_imports_is_flushed_when_the_process_ends(tmp_path, ends):
    """Also where only a collection at the very end frees it: a class refers to itself."""
    path = tmp_path / "written.txt"
    command = [sys.executable, "-c", SPARED.format(ends=ends), str(path)]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.split() == [str(ends), "True", "True"]
    assert path.read_text() == "of a class, "
    assert Path(f"{path}2").read_text() == "lines"


def test_a_failed_import_leaves_collections_on():
    with collect_seldom(process_ends=True), pytest.raises(ModuleNotFoundError):
        import_spared("edgesmith.no_such_module")
    assert gc.isenabled()


def test_only_the_process_of_a_command_freezes_its_imports(monkeypatch, tmp_path):
    counts = []

    def counted(*_, **__):
        import_spared("json")
        counts.append(gc.get_freeze_count())

    monkeypatch.setattr(cli, "app", counted)
    assert cli.main(["targets"]) == 0
    monkeypatch.setattr(sys, "argv", ["edgesmith", "targets"])
    assert cli.main() == 0
    assert counts[0] == 0 < counts[1]


def test_a_plugin_that_a_compile_imports_keeps_its_open_file(tmp_path):
    """Plugins come behind the spared imports, so what their classes hold is freed at the end."""
    plugin = tmp_path / "plugin.py"
    written = tmp_path / "log.txt"
    plugin.write_text(f"class Log:\n    file = open({str(written)!r}, 'w')\n\nLog.file.write('lines')\n")
    arguments = ["--plugin", str(plugin), "compile", str(tmp_path / "none.onnx"), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "edgesmith", *arguments], timeout=120, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert written.read_text() == "lines"
