"""A plugin that takes the run with it is named by the next command."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgesmith.cli import main
from edgesmith.host.loader import load_file, load_registry
from edgesmith.host.sudden_ends import noted, sudden_ends
from edgesmith.serialization import write_onnx
from edgesmith.testing import tiny_mlp

pytestmark = pytest.mark.usefixtures("without_first_imports")

BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"
LEAVES = BAD_PLUGINS / "leaves_the_process.py"
RUN = """
import sys
from pathlib import Path
from edgesmith.testing import isolated_registry, run_method, tiny_mlp
run_method(isolated_registry(Path(sys.argv[1])), "leaves-the-process", tiny_mlp())
"""


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def stranger():
    return load_file(LEAVES)


def test_the_next_command_names_the_step_in_which_a_run_ended_and_then_forgets_it(caplog):
    assert subprocess.run([sys.executable, "-c", RUN, str(LEAVES)], check=False).returncode == 7
    for said in (True, False):
        caplog.clear()
        assert main(["methods", "--json"]) == 0
        assert ("inside step 0, method leaves-the-process 1.0 from file:leaves_the_process" in caplog.text) == said
        assert ("--isolate" in caplog.text) == said


@pytest.mark.parametrize("call", ["check", "lower", "build", "finish"])
def test_the_call_of_a_target_in_which_a_run_ended_is_named(tmp_path, call):
    write_onnx(tiny_mlp().ir, tmp_path / "mlp.onnx")
    (tmp_path / "recipe.yaml").write_text("steps: []")
    words = ["--plugin", str(BAD_PLUGINS / "breaks_as_told.py"), "compile", str(tmp_path / "mlp.onnx")]
    words += ["--recipe", str(tmp_path / "recipe.yaml"), "--target", "told", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "BREAK_HERE": f"target.{call}:leave"}
    assert subprocess.run([sys.executable, "-m", "edgesmith", *words], check=False, env=environment).returncode == 5
    (said,) = sudden_ends()
    doing = {"check": "check", "lower": "lowering", "build": "building", "finish": "finishing"}[call]
    assert said.startswith(f"the {doing} of target told 1.0 from file:breaks_as_told")


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_an_end_that_is_said_leaves_no_note(stranger, store, ending):
    try:
        with noted(stranger, "step 1"):
            (note,) = (store / "under-way").iterdir()
            assert note.read_text() == "step 1"
            if ending is not None:
                raise ending
    except (ValueError, KeyboardInterrupt, SystemExit):
        pass
    assert list((store / "under-way").iterdir()) == []
    assert sudden_ends() == ()


def test_a_run_that_is_still_there_is_not_taken_for_dead(stranger):
    with noted(stranger, "step 1"):
        assert sudden_ends() == ()


def test_each_run_that_ended_is_named_once(stranger):
    for number in (1, 2):
        process = os.fork()
        if process == 0:
            with noted(stranger, f"step {number}"):
                os._exit(0)
        os.waitpid(process, 0)
    assert sorted(sudden_ends()) == ["step 1", "step 2"]
    assert sudden_ends() == ()


def test_own_code_is_not_noted(store):
    with noted(load_registry(plugins=False).plugins[0], "step 1"):
        assert not (store / "under-way").exists()


def test_a_place_that_cannot_be_written_stops_nothing(stranger, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("where the folder would be")
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "file"))
    with noted(stranger, "step 1"):
        pass
    assert sudden_ends() == ()


def test_a_torn_or_overlong_note_stops_nothing(stranger, store):
    (store / "under-way").mkdir(parents=True)
    (store / "under-way" / "a").write_bytes(b"\xff" * 5000)
    torn = store / "under-way" / "b.new"
    torn.write_bytes(b"half a no")
    os.utime(torn, (time.time() - 3600,) * 2)
    (words,) = sudden_ends()
    assert len(words) == 1000
    assert list((store / "under-way").iterdir()) == []


def test_a_note_that_is_just_being_written_is_left_alone(stranger, store, monkeypatch):
    """Another command that looks between the creation of a note and its lock finds nothing and takes nothing."""
    real, looked = fcntl.flock, []

    def look_first(file, operation):
        if not looked:
            looked.append(None)
            looked[0] = sudden_ends()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", look_first)
    with noted(stranger, "step 1"):
        assert looked == [()]
        (note,) = (store / "under-way").iterdir()
        assert note.read_text() == "step 1"


def test_where_nothing_can_be_locked_nothing_is_left(stranger, store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    done = []
    with noted(stranger, "step 1"):
        done.append("the work")
    assert done and list((store / "under-way").iterdir()) == []


def test_locks_that_need_a_writable_descriptor_are_had(stranger, monkeypatch):
    """As on NFS, where Linux makes an exclusive flock from a record lock for writing."""
    real = fcntl.flock

    def as_on_nfs(file, operation):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    process = os.fork()
    if process == 0:
        with noted(stranger, "step 1"):
            os._exit(0)
    os.waitpid(process, 0)
    assert sudden_ends() == ("step 1",)


def test_a_forked_worker_that_leaves_the_block_leaves_the_note_of_its_parent(stranger, store):
    with noted(stranger, "step 1"):
        process = os.fork()
        if process == 0:
            pass  # Leaving the block is all that the worker does.
        else:
            os.waitpid(process, 0)
            (note,) = (store / "under-way").iterdir()
            assert note.read_text() == "step 1" and sudden_ends() == ()
    if process == 0:
        os._exit(0)
    assert list((store / "under-way").iterdir()) == []


def test_a_name_that_is_not_utf8_can_be_noted(stranger, store):
    with noted(stranger, "method odd from file:odd\udcff"):
        (note,) = (store / "under-way").iterdir()
        assert note.read_text() == "method odd from file:odd\\udcff"
