"""Imports that break their process are found out in another one, once; every command works afterwards."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from tests.isolation.processes import awaited, ends, let_time_run_out_at

from edgesmith import Isolation
from edgesmith.cli import main
from edgesmith.errors import PluginError
from edgesmith.host.first_imports import FirstImports
from edgesmith.host.loader import load_registry
from edgesmith.isolation import imports
from edgesmith.isolation.folder import REQUEST_FILE
from edgesmith.isolation.import_child import Import
from edgesmith.isolation.starting import start_child
from edgesmith.isolation.watchdog import Watchdog
from edgesmith.testing.subject import find_subject

BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"
GOOD = """
import edgesmith

@edgesmith.hookimpl
def register_lints():
    return [edgesmith.LintRecord(name="good-rule", version="1", summary="A rule.", entry="{module}:rule")]
"""
BREAK_THEIR_PROCESS = {
    "leaves_at_import": "importing the plugin: ended its process with code 3 before the import was done",
    "leaves_in_hook": "importing the plugin: ended its process with code 4 before the import was done",
    "aborts_at_import": "importing the plugin: its process was ended by SIGABRT, at aborts_at_import.py:5",
    "never_ends_at_import": "importing the plugin: did not end within 60 s, at never_ends_at_import.py:",
    "eats_memory_at_import": "of memory, and may take 300, at eats_memory_at_import.py:",
    "interrupts_at_import": "importing the plugin: raised KeyboardInterrupt",
}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    """A store of its own for each test, and a memory limit that is soon reached."""
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(imports, "LIMITS", Isolation(60, 300))
    return tmp_path / "store"


@pytest.fixture
def tries(monkeypatch) -> list[list[str]]:
    """What was tried in a process of its own, one list for each time."""
    seen: list[list[str]] = []

    def recording(wanted, homes):
        seen.append([one.module or one.origin.entry_point for one in wanted])
        return real(wanted, homes)

    real = imports.try_imports
    monkeypatch.setattr(imports, "try_imports", recording)
    return seen


def rules(registry) -> list[str]:
    return [record.name for record in registry.lints() if record.name == "good-rule"]


def test_every_import_that_breaks_its_process_is_named_and_the_others_work(
    install, tries, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("NEVER_ENDING", str(tmp_path / "never_ending"))
    let_time_run_out_at(tmp_path / "never_ending", monkeypatch)
    install("edge-good", source=GOOD.format(module="absent"))
    files = [BAD_PLUGINS / f"{name}.py" for name in BREAK_THEIR_PROCESS]
    registry = load_registry(files=files)
    buried = {one.entry_point: one for one in registry.tombstones}
    assert set(buried) == set(BREAK_THEIR_PROCESS)
    for name, tombstone in buried.items():
        assert BREAK_THEIR_PROCESS[name] in tombstone.error
        assert tombstone.stage == "import" and "\n" not in tombstone.error
        assert "--retry" in tombstone.traceback
    assert rules(registry) == ["good-rule"]
    # What comes after a fatal import is tried too, and nothing is tried again by the commands that follow.
    words = [word for file in files for word in ("--plugin", str(file))]
    for command in ("methods", "plugins", "targets", "schema", "doctor"):
        assert main([*words, command]) == 0
    assert len(tries) == 1
    assert BREAK_THEIR_PROCESS["leaves_at_import"] in capsys.readouterr().out
    assert psutil.Process().children(recursive=True) == []


def test_all_commands_work_beside_an_installed_plugin_that_ends_its_process(install, tmp_path):
    install("edge-fatal", source="import os\nos._exit(9)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "edge-fatal"), *sys.path])}
    command = [sys.executable, "-m", "edgesmith", "plugins", "--json"]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (broken,) = json.loads(done.stdout)["broken"]
        assert broken["distribution"] == "edge-fatal" and "with code 9" in broken["error"]


def test_a_plugin_is_tried_again_when_it_or_its_neighbours_change_or_somebody_asks(install, tries, tmp_path):
    module = tmp_path / "edge-prune" / "edge_prune.py"
    install("edge-prune", source="import os\nos._exit(9)\n")
    assert load_registry().tombstones and load_registry().tombstones
    assert len(tries) == 1
    assert load_registry(retry=True).tombstones
    assert len(tries) == 2
    module.write_text(GOOD.format(module="absent"))
    assert rules(load_registry()) == rules(load_registry()) == ["good-rule"]
    assert len(tries) == 3
    # There is nothing to retry where nothing is broken.
    assert main(["plugins", "--retry"]) == 0
    assert len(tries) == 3
    sys.modules.pop("edge_prune")


def test_what_broke_is_tried_again_once_where_somebody_asks(tmp_path, store, tries):
    plugin = imports_of(tmp_path, "one", "import os\nos._exit(9)\n").origin.candidate()
    for times in (1, 2):
        first_imports = FirstImports(store, retry=True)
        for _ in range(2):
            assert "code 9" in first_imports.faults([plugin])[0]
        assert len(tries) == times


@pytest.mark.parametrize(
    "change",
    ["nothing", "code", "beside", "package beside", "distribution", "version", "entry point", "python", "ours"],
)
def test_a_plugin_is_tried_again_exactly_when_what_it_depends_on_changes(install, tries, tmp_path, monkeypatch, change):
    install("edge-prune")
    beside = tmp_path / "edge-beside"
    (beside / "package").mkdir(parents=True)
    (beside / "edge-1.0.dist-info").mkdir()
    for module in ("module.py", "package/__init__.py"):
        (beside / module).touch()
    monkeypatch.syspath_prepend(beside)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    load_registry()
    plugin = tmp_path / "edge-prune"
    information = plugin / "edge_prune-0.3.dist-info"
    # Neither a result nor a module in the folder where commands are started is installed.
    (beside / "results").mkdir()
    (tmp_path / "script.py").touch()
    match change:
        case "code":
            (plugin / "edge_prune.py").write_text((plugin / "edge_prune.py").read_text() + "\n")
        case "beside":
            (beside / "module.py").write_text("changed = True")
        case "package beside":
            (beside / "package" / "__init__.py").write_text("changed = True")
        case "distribution":
            (beside / "edge-1.0.dist-info").rename(beside / "edge-1.1.dist-info")
        case "version":
            (information / "METADATA").write_text((information / "METADATA").read_text().replace("n: 0.3", "n: 0.4"))
        case "entry point":
            (information / "entry_points.txt").write_text("[edgesmith]\nmain = edge_prune:RECORD\n")
        case "python":
            monkeypatch.setattr(sys, "version", "another")
        case "ours":
            monkeypatch.setattr("edgesmith.host.first_imports.__version__", "0.1.99")
    for _ in range(2):
        load_registry()
    assert len(tries) == (1 if change == "nothing" else 2)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os\nos._exit(9)\n", "importing the plugin: ended its process with code 9"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ],
)
def test_the_names_of_a_plugin_that_broke_in_a_later_version_are_known(install, tmp_path, source, words):
    install("edge-prune", method="halve")
    assert load_registry().method("halve")
    sys.modules.pop("edge_prune")
    (tmp_path / "edge-prune" / "edge_prune.py").write_text(source)
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            load_registry().method("halve")
        assert f"method 'halve' cannot be used, since edge-prune 0.3 is broken: {words}" in caught.value.what


def test_a_class_whose_module_ends_its_process_is_not_imported_here(install, tmp_path, tries, capsys):
    install("edge-good", source=GOOD.format(module="edge_good_rules"))
    (tmp_path / "edge-good" / "edge_good_rules.py").write_text("import os\nos._exit(9)\n")
    for _ in range(2):
        registry = load_registry()
        with pytest.raises(PluginError) as caught:
            registry.load(registry.lint("good-rule"))
        assert caught.value.what == (
            "importing edge_good_rules of edge-good 0.3: ended its process with code 9 before the import was done"
        )
    assert tries == [["main"], ["edge_good_rules"]]
    (tmp_path / "edge-good" / "edge_good_rules.py").write_text("def rule(model, dialect): return []\n")
    registry = load_registry()
    assert callable(registry.load(registry.lint("good-rule")))
    sys.modules.pop("edge_good_rules")


def test_an_attribute_that_an_entry_point_names_is_tried_too(install, tmp_path, tries):
    install("edge-prune", source="import edge_hooks as hooks")
    (tmp_path / "edge-prune" / "edge_hooks.py").write_text("""
import os
import edgesmith

@edgesmith.hookimpl
def register_methods():
    os._exit(9)
""")
    points = tmp_path / "edge-prune" / "edge_prune-0.3.dist-info" / "entry_points.txt"
    points.write_text("[edgesmith]\nmain = edge_prune:hooks\n")
    for _ in range(2):
        (tombstone,) = load_registry().tombstones
        assert "importing the plugin: ended its process with code 9" in tombstone.error
    assert tries == [["main"]]


def test_a_module_that_raises_is_imported_here_and_shows_its_own_error(install, tries):
    install("edge-prune", source="import nothing_of_that_name")
    for _ in range(2):
        (tombstone,) = load_registry().tombstones
        assert tombstone.error == "ModuleNotFoundError: No module named 'nothing_of_that_name'"
    assert len(tries) == 1


def test_modules_of_edgesmith_that_a_record_names_are_not_tried(tmp_path, store, tries):
    origin = imports_of(tmp_path, "one", "").origin
    assert FirstImports(store).fault_in(origin, "edgesmith.host.options") == ""
    assert tries == []


def test_a_plugin_for_another_version_is_not_even_tried(install, tries):
    install("edge-prune", requires="edgesmith>=99", source="import os\nos._exit(9)\n")
    assert load_registry().tombstones[0].stage == "version"
    assert tries == []


def test_bundled_plugins_are_not_tried(tries):
    load_registry()
    assert tries == []


@pytest.mark.parametrize("content", ["[]", '{"edge-prune main": {"fault": 3}}', "\x00", "[" * 99999])
def test_damaged_answers_count_as_none(install, tries, store, content):
    install("edge-prune")
    load_registry()
    (file,) = store.glob("imports-*.json")
    file.write_text(content)
    assert load_registry().method("halve")
    assert len(tries) == 2


def test_commands_that_run_at_once_keep_the_answers_of_each_other_but_none_of_a_file_that_is_gone(tmp_path, store):
    first, second = FirstImports(store), FirstImports(store)
    origins = [imports_of(tmp_path, name, "").origin for name in "abc"]
    for one, origin in zip((first, second, first), origins, strict=True):
        one.faults([origin.candidate()])
    (file,) = store.glob("imports-*.json")
    assert len(json.loads(file.read_text())) == 3
    (tmp_path / "a.py").unlink()
    second.faults([imports_of(tmp_path, "d", "").origin.candidate()])
    assert [Path(key.split()[0]).name for key in json.loads(file.read_text())] == ["b.py", "c.py", "d.py"]


def test_a_folder_that_cannot_be_written_is_tolerated(install, tries, store):
    store.write_text("a file stands where the folder belongs")
    install("edge-prune")
    for _ in range(2):
        assert load_registry().method("halve")
    assert len(tries) == 2


def no_folder(**settings: object) -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize(
    ("place", "name", "found"),
    [(imports, "_CHILD", "absent"), (sys, "executable", "absent"), (imports, "TemporaryDirectory", no_folder)],
)
def test_where_no_process_can_be_started_plugins_are_imported_untried_and_tried_later(
    install, tries, monkeypatch, caplog, place, name, found
):
    install("edge-prune")
    with monkeypatch.context() as broken:
        broken.setattr(place, name, found)
        for _ in range(2):
            assert load_registry().method("halve")
    assert len(tries) == len(caplog.messages) == 2
    assert "imported untried this time" in caplog.text
    for _ in range(2):
        assert load_registry().method("halve")
    assert len(tries) == 3 and len(caplog.messages) == 2


def test_a_process_that_does_not_start_leaves_no_connection(tmp_path, monkeypatch):
    pair = socket.socketpair()
    monkeypatch.setattr(socket, "socketpair", lambda: pair)
    monkeypatch.setattr(sys, "executable", "absent")
    with pytest.raises(OSError, match="absent"):
        start_child("edgesmith.isolation.import_child", tmp_path)
    assert [end.fileno() for end in pair] == [-1, -1]


def test_checking_a_file_that_ends_its_process_says_so():
    with pytest.raises(PluginError, match="does not load: at import, importing the plugin: ended its process"):
        find_subject(str(BAD_PLUGINS / "leaves_at_import.py"), load_registry(plugins=False))
    assert main(["plugin", "check", str(BAD_PLUGINS / "leaves_in_hook.py")]) == 2


def test_one_process_does_all_up_to_a_fatal_one(tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen

    def counting(*arguments, **settings):
        started.append(arguments)
        return popen(*arguments, **settings)

    monkeypatch.setattr(subprocess, "Popen", counting)
    origins = [imports_of(tmp_path, name, text) for name, text in (("a", ""), ("b", "import os; os._exit(1)"))]
    wanted = [*origins, *(imports_of(tmp_path, name, "") for name in "cde")]
    answers = imports.try_imports(wanted, [()] * len(wanted))
    assert [bool(answer.fault) for answer in answers] == [False, True, False, False, False]
    # The fatal one is asked a second time, alone.
    assert len(started) == 3


def tried(folder: Path, *texts: str) -> list[str]:
    """Return the faults of plugin files with these texts."""
    wanted = [imports_of(folder, f"plugin_{index}", text) for index, text in enumerate(texts)]
    return [answer.fault for answer in imports.try_imports(wanted, [()] * len(wanted))]


def test_nobody_is_accused_of_what_an_import_before_it_does(tmp_path):
    """Both times, the third import is tried with the two before it, breaks the process, and is tried again alone."""
    log = tmp_path / "log"
    begins = f"import os, sys, threading, time\nopen({str(log)!r}, 'a').write(__file__[-4])\n"
    # A thread of the first ends the process once the third is being imported.
    late = "sys.begun = threading.Event()\nthreading.Thread(target=lambda: sys.begun.wait() and os._exit(5)).start()\n"
    victim = "if begun := getattr(sys, 'begun', None):\n    begun.set()\n    time.sleep(60)\n"
    assert tried(tmp_path, begins + late, begins, begins + victim, begins) == [""] * 4
    assert log.read_text() == "012" + "23"
    # Each alone holds 100 MiB, and may take 300.
    log.unlink()
    holds = "sys.held = [*getattr(sys, 'held', []), b'x' * (100 << 20)]\nif len(sys.held) == 3:\n    time.sleep(60)\n"
    assert tried(tmp_path, *[begins + holds] * 3) == [""] * 3
    assert log.read_text() == "012" + "2"


def test_an_import_that_writes_into_the_connection_is_told_from_the_others(tmp_path):
    babble = "import os, sys\nos.write(int(sys.argv[1]), {!r})\nos._exit(0)\n"
    for text in (b"babble\n", b"\xff\n", b"[]\n", b"[" * 99999 + b"\n", b'{"fault": ""}\n'):
        assert [bool(fault) for fault in tried(tmp_path, "", babble.format(text), "")] == [False, True, False]


def test_what_was_said_before_a_line_that_is_no_text_counts():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b'{}\n{"fault": "", "names": null}\n\xff\n{}\n')
        assert list(imports._messages(ours)) == [{}, {"fault": "", "names": None}]


def test_time_counts_anew_for_each_import(tmp_path, monkeypatch):
    begun: list[Watchdog] = []
    monkeypatch.setattr(Watchdog, "begin", lambda watchdog: begun.append(watchdog))
    assert tried(tmp_path, "", "", "") == [""] * 3
    assert len(begun) == 3


def test_exit_handlers_of_plugins_are_not_run_where_they_are_tried(tmp_path):
    told = tmp_path / "told"
    one = imports_of(tmp_path, "one", f"import atexit, pathlib\natexit.register(pathlib.Path({str(told)!r}).touch)\n")
    (tmp_path / REQUEST_FILE).write_text(json.dumps({"import_path": sys.path, "imports": [asdict(one)]}))
    process, ours = start_child("edgesmith.isolation.import_child", tmp_path)
    with ours, process.stdin:
        assert process.wait(60) == 0
    assert not told.exists()


def test_the_environment_gives_other_limits(tmp_path, monkeypatch):
    # Less than a process takes to start, which does not count.
    never_ends = "import time\nheld = b'x' * ({} << 20)\ntime.sleep(120)\n"
    monkeypatch.setenv("EDGESMITH_IMPORT_SECONDS", "0.01")
    assert "did not end within 0.01 s" in tried(tmp_path, never_ends.format(1))[0]
    monkeypatch.setenv("EDGESMITH_IMPORT_SECONDS", "60")
    monkeypatch.setenv("EDGESMITH_IMPORT_MIB", "150")
    assert "and may take 150" in tried(tmp_path, never_ends.format(200))[0]
    monkeypatch.setenv("EDGESMITH_IMPORT_MIB", "a lot")
    with pytest.raises(PluginError, match="'a lot'"):
        tried(tmp_path, "")


def imports_of(folder: Path, name: str, text: str) -> Import:
    from edgesmith.host.loader import file_candidate

    (folder / f"{name}.py").write_text(text)
    origin = file_candidate(folder / f"{name}.py").origin
    assert origin is not None
    return Import(origin)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_command_that_is_ended_takes_what_it_tries_along(tmp_path, number, code):
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(120)\n")
    run = subprocess.Popen(
        [sys.executable, "-m", "edgesmith", "--plugin", str(slow), "methods"], stderr=subprocess.PIPE
    )
    (child, *_) = awaited(lambda: psutil.Process(run.pid).children(recursive=True))
    time.sleep(0.3)
    run.send_signal(number)
    assert run.wait(30) == code
    assert ends(child)


@pytest.mark.skipif(sys.platform == "darwin", reason="file names of macOS are UTF-8")
def test_a_file_name_that_is_not_utf8_stops_nothing(install, tries, tmp_path, capsys):
    install("edge-good", source=GOOD.format(module="absent"))
    beside = tmp_path / "edge-good" / os.fsdecode(b"odd\xff.py")
    beside.write_text("")
    assert rules(load_registry()) == ["good-rule"]
    # A file that is a plugin itself is tried, loaded and listed by such a name.
    own = tmp_path / os.fsdecode(b"own\xff.py")
    own.write_text(GOOD.format(module="absent").replace("good-rule", "own-rule"))
    registry = load_registry(files=[own])
    assert "own-rule" in {record.name for record in registry.lints()} and not registry.tombstones
    assert main(["--plugin", str(own), "plugins", "--json"]) == 0
    assert "own-rule" in capsys.readouterr().out
    assert len(tries) == 2
