"""A run that is killed at any point: nothing half written, and the next run ends with the same bytes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgesmith.cli import main
from edgesmith.files import PARTIAL_SUFFIX
from tests.pipeline.conftest import Job

STOPPING = """
import itertools, os, sys
from pathlib import Path
from edgesmith.cli import main
from edgesmith.files import PARTIAL_SUFFIX

number, entries, store = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
finished = itertools.count()

def stopping(move):
    def moved(path, target):
        # Deeper down are files of a result that is still being written.
        if path.name.endswith(PARTIAL_SUFFIX) and path.parents[2] == store and next(finished) == entries:
            os.kill(os.getpid(), number)
        return move(path, target)

    return moved

Path.rename, Path.replace = stopping(Path.rename), stopping(Path.replace)
sys.exit(main(sys.argv[4:]))
"""
"""A command that sends itself a signal when its store holds so many results, and the next one is written beside."""


def finished_entries(store: Path) -> int:
    """Return how many results the store holds."""
    return sum(1 for path in store.glob("*/*/*") if PARTIAL_SUFFIX not in path.name)


def run_until(job: Job, entries: int, number: signal.Signals) -> int:
    """Let a compile send itself a signal once its store holds `entries` results, and return the exit code."""
    store = job.folder.resolve() / "store"
    command = [sys.executable, "-c", STOPPING, str(int(number)), str(entries), str(store), *job.arguments()]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    # Shown where the test fails: why the compile ended before it was stopped.
    sys.stderr.write(done.stderr.decode())
    assert finished_entries(store) == entries
    return done.returncode


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model file of an uninterrupted run."""
    from tests.pipeline.conftest import write_classifier, write_data

    folder = tmp_path_factory.mktemp("uninterrupted")
    write_classifier(folder / "classifier.onnx")
    job = Job(folder, folder / "classifier.onnx", write_data(folder, folder / "classifier.onnx"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESMITH_STORE", str(folder / "store"))
        assert main(job.arguments()) == 0
    return (folder / "artifact" / "model.onnx").read_bytes()


@pytest.mark.parametrize("entries", [0, 1, 3, 8])
def test_a_killed_run_resumes_to_the_same_bytes(job: Job, expected: bytes, entries: int) -> None:
    code = run_until(job, entries, signal.SIGKILL)
    artifact = job.folder / "artifact"
    assert code == -signal.SIGKILL and not artifact.exists()
    assert len(list((job.folder / "store").rglob(f"*{PARTIAL_SUFFIX}"))) == 1
    assert main(job.arguments()) == 0
    assert (artifact / "model.onnx").read_bytes() == expected
    leftovers = [path for path in job.folder.rglob(f"*{PARTIAL_SUFFIX}*") if path.is_file()]
    assert leftovers == []


def test_an_interrupted_run_says_so_and_leaves_nothing(job: Job) -> None:
    # Python ends by the signal itself when the interruption crossed a library that runs Python code from C; a shell
    # shows 130 for both.
    assert run_until(job, 1, signal.SIGINT) in {130, -signal.SIGINT}
    assert not (job.folder / "artifact").exists()
    assert list(job.folder.rglob(f"*{PARTIAL_SUFFIX}*")) == []


@pytest.mark.parametrize("area", ["models", "builds", "facts"])
def test_a_damaged_store_is_computed_again(job: Job, expected: bytes, area: str) -> None:
    assert main(job.arguments()) == 0
    for path in (job.folder / "store" / area).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main(job.arguments()) == 0
    assert (job.folder / "artifact" / "model.onnx").read_bytes() == expected
