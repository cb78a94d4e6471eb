"""Writing is all or nothing, whatever stops it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgesmith.errors import OutputError
from edgesmith.files import (
    PARTIAL_SUFFIX,
    hash_directory,
    hash_file,
    replace_directory,
    require_writable,
    write_atomically,
)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def leftovers(directory: Path) -> list[str]:
    return [name for name in names(directory) if name.endswith(PARTIAL_SUFFIX)]


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def start_and_kill(code: str, path: Path) -> None:
    """Run `code` until it prints, then kill it."""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)


def test_written_content_is_read_back(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "a.bin", b"one")
    write_atomically(tmp_path / "new" / "a.bin", "zwei ü")
    assert (tmp_path / "new" / "a.bin").read_text(encoding="utf-8") == "zwei ü"
    write_atomically(tmp_path / "b.bin", lambda stream: stream.writelines([b"x", b"y"]))
    assert (tmp_path / "b.bin").read_bytes() == b"xy"
    assert leftovers(tmp_path) == leftovers(tmp_path / "new") == []


def test_new_files_follow_the_umask_and_old_ones_keep_their_mode(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"1")
    plain = tmp_path / "plain"
    plain.write_bytes(b"1")
    assert (tmp_path / "a").stat().st_mode == plain.stat().st_mode
    plain.chmod(0o600)
    write_atomically(plain, b"2")
    assert plain.stat().st_mode & 0o777 == 0o600


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(stream: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_real_full_device_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fill(stream: object) -> None:
        with Path("/dev/full").open("wb") as device:
            device.write(b"x" * 100_000)

    with pytest.raises(OutputError, match="the disk is full"):
        write_atomically(path, fill)
    with pytest.raises(OutputError, match="the disk is full"), replace_directory(tmp_path / "d") as new:
        (new / "begun").write_bytes(b"x")
        fill(None)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_limit_hit_by_the_write_itself_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = """
import resource, signal, sys
from edgesmith.errors import OutputError
from edgesmith.files import replace_directory, write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_atomically(sys.argv[1], b"x" * 20_000)
except OutputError as error:
    print(error)
try:
    with replace_directory(sys.argv[1] + "d") as new:
        (new / "big").write_bytes(b"x" * 20_000)
except OutputError as error:
    print(error)
"""
    done = run_python(code, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("larger than the system allows") == 2
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    for destination in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y"):
        with pytest.raises(OutputError, match="Cannot write"):
            write_atomically(destination, b"")
        with pytest.raises(OutputError, match="Cannot write"):
            require_writable(destination)
        with pytest.raises(OutputError, match="Cannot write"), replace_directory(destination):
            pytest.fail("the block must not run")
    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
def test_a_file_system_that_refuses_writes_is_explained() -> None:
    # Permission bits do not bind the superuser, who runs many test suites; procfs refuses everybody.
    with pytest.raises(OutputError, match="Cannot write"):
        require_writable("/proc/edgesmith")
    with pytest.raises(OutputError, match="Cannot write"):
        write_atomically("/proc/edgesmith.json", b"")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permission bits do not bind root")
def test_a_read_only_directory_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission is denied"):
        require_writable(tmp_path)


def test_devices_and_directories_are_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        write_atomically("/dev/null", b"x")
    with pytest.raises(OutputError, match="not a regular file"):
        write_atomically(tmp_path, b"x")


def test_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with replace_directory(tmp_path / "out", marker="mark") as new:
            (new / "mark").write_text(content)
            (new / content).write_text("only in this one")
    assert names(tmp_path / "out") == ["mark", "two"]
    assert names(tmp_path) == ["out"]


def test_without_an_exchange_in_the_file_system_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgesmith.files._exchange", lambda first, second: False)
    test_directory_is_replaced_as_a_whole(tmp_path)
    # The state that a run killed between the two renames leaves behind.
    (tmp_path / "out").rename(tmp_path / ".out.edgesmith-old")
    with pytest.raises(KeyboardInterrupt), replace_directory(tmp_path / "out"):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["mark", "two"]


def test_long_names_have_partials_too(tmp_path: Path) -> None:
    for name in ("a" * 255, "ü" * 127):
        write_atomically(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
    with pytest.raises(OutputError, match="its name is too long"):
        write_atomically(tmp_path / ("a" * 256), b"x")


def test_a_failing_block_leaves_the_old_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_directory(tmp_path / "out") as new:
        (new / "half").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


def test_a_directory_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds no `mark`"), replace_directory(precious, marker="mark"):
        pytest.fail("the block must not run")
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_directory_filled_by_somebody_during_the_block_survives(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no"), replace_directory(tmp_path / "out", marker="mark") as new:
        (new / "mark").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
    assert names(tmp_path / "out") == ["theirs"]


def test_errors_of_reading_inside_the_block_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_directory(tmp_path / "out"):
        (tmp_path / "absent").read_bytes()
    assert names(tmp_path) == []


def test_kill_leaves_the_old_result_and_the_next_write_cleans_up(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    begin = """
import sys, time
from edgesmith.files import replace_directory, write_atomically
with replace_directory(sys.argv[1] + "/out") as new:
    (new / "half").write_text("half")
    write_atomically(sys.argv[1] + "/file", lambda stream: (print("ready", flush=True), time.sleep(60)))
"""
    start_and_kill(begin, tmp_path)
    assert names(tmp_path / "out") == ["old"]
    assert len(leftovers(tmp_path)) == 2
    write_atomically(tmp_path / "file", b"new")
    with replace_directory(tmp_path / "out") as new:
        (new / "new").touch()
    assert names(tmp_path) == ["file", "out"]
    assert names(tmp_path / "out") == ["new"]


def test_a_write_in_progress_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    with replace_directory(tmp_path / "out") as first:
        (first / "who").write_text("first")
        with replace_directory(tmp_path / "out") as second:
            (second / "who").write_text("second")
        assert (first / "who").read_text() == "first"
    assert (tmp_path / "out" / "who").read_text() == "first"


def test_processes_may_write_one_destination_at_the_same_time(tmp_path: Path) -> None:
    """Somebody's whole result stands at the end, nobody gets an error, and nothing is left over."""
    code = """
import sys, time
from pathlib import Path
from edgesmith.files import replace_directory, write_atomically
folder, me = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready{me}").touch()
while len(list(folder.glob("ready?"))) < 3:
    time.sleep(0.001)
for turn in range(100):
    with replace_directory(folder / f"out{turn}", marker="who") as new:
        (new / "who").write_text(me)
    write_atomically(folder / "file", me)
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(me)], stderr=subprocess.PIPE, text=True)
        for me in range(3)
    ]
    assert [writer.communicate(timeout=60)[1] for writer in writers] == ["", "", ""]
    assert all((tmp_path / f"out{turn}" / "who").read_text() in {"0", "1", "2"} for turn in range(100))
    assert (tmp_path / "file").read_text() in {"0", "1", "2"}
    assert leftovers(tmp_path) == []


def test_a_check_before_the_work_creates_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "not" / "yet" / "there")
    require_writable(tmp_path)
    assert names(tmp_path) == []


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = {bytes([letter]) * 50_000 for letter in b"ab"}
    write_atomically(path, next(iter(contents)))
    torn: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            if (seen := path.read_bytes()) not in contents:
                torn.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for content in contents:
            write_atomically(path, content)
    stop.set()
    reader.join()
    assert torn == []


def test_hashes_follow_content_and_names_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        write_atomically(tmp_path / name / "sub" / "x", b"same")
        write_atomically(tmp_path / name / "y", b"other")
    os.utime(tmp_path / "two" / "y", (0, 0))
    assert hash_directory(tmp_path / "one") == hash_directory(tmp_path / "two")
    assert hash_file(tmp_path / "one" / "y") == hash_file(tmp_path / "two" / "y")
    (tmp_path / "two" / "y").rename(tmp_path / "two" / "z")
    assert hash_directory(tmp_path / "one") != hash_directory(tmp_path / "two")
    # Moving bytes between name and content must not collide.
    assert hash_file(tmp_path / "one" / "y") != hash_file(tmp_path / "one" / "sub" / "x")
