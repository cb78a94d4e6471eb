"""A plugin that takes the run with it is named by the next command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgesmith.cli import main
from edgesmith.host.loader import load_file, load_registry
from edgesmith.host.sudden_ends import noted, sudden_ends

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
    (store / "under-way" / "b.new").write_bytes(b"half a no")
    (words,) = sudden_ends()
    assert len(words) == 1000
    assert list((store / "under-way").iterdir()) == []
