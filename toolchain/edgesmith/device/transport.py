"""What a way to a device must offer: run a command, copy files, and leave nothing behind."""

import logging
import re
import shlex
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgesmith.device import faults
from edgesmith.device.worker.machine import CLOCKS_FILE
from edgesmith.errors import DeviceError
from edgesmith.files import hash_file

LARGEST_ANSWER_BYTES = 64_000_000
"""Of a file that is read as a whole and describes, such as times."""

COMMAND_SECONDS = 60.0
"""Time for small commands such as making a directory."""

_HASH_SECONDS = 600.0
"""Time to read a model of many gigabytes on a slow card."""

PROCESS_FILE = "worker.pid"
"""Where the numbers of programs that work in the directory are written, so that they can be stopped."""

# In a session of its own where that can be had, so that all that the program starts is stopped with it.
_START = f"""if command -v setsid >/dev/null; then set -- setsid "$@"; fi
"$@" &
echo "$!" >"$0/{PROCESS_FILE}"
wait "$!"
"""
# A number may be another program's by now; only one that was started from the directory is stopped.
_STOP = f"""for number in $(cat "$0/{PROCESS_FILE}" "$0"/*/{PROCESS_FILE} 2>/dev/null); do
    case $number in *[!0-9]*) continue ;; esac
    grep -q -F -e "$0" "/proc/$number/cmdline" 2>/dev/null && kill -s KILL -- "-$number" "$number" 2>/dev/null
done
"""
_RESTORE = """[ -e "$0" ] || exit 0
PATH="$PATH:/usr/sbin:/sbin:/usr/local/bin"
program=$(command -v jetson_clocks) || { echo 'there is no jetson_clocks' >&2; exit 1; }
[ "$(id -u)" = 0 ] || root='sudo -n'
$root "$program" --restore "$0" && rm -f "$0"
"""

_PREFIX = "edgesmith-"
_MADE = re.compile(r"[A-Za-z0-9]{10}")
_SHELL_SIGNAL = 128
"""A shell reports a child that signal n ended with the exit code 128 + n."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended."""

    code: int
    """Exit code; the negative number of the signal where one ended the command."""
    stdout: str
    stderr: str

    @property
    def signal_name(self) -> str:
        """Name of the signal that ended the command, such as SIGKILL; empty where it ended by itself."""
        number = -self.code if self.code < 0 else self.code - _SHELL_SIGNAL
        return signal.Signals(number).name if number in set(signal.Signals) else ""

    @property
    def last_line(self) -> str:
        """The last line on standard error, or on standard output where that is empty."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1] if lines else ""

    @property
    def reason(self) -> str:
        """The first lines that TensorRT marks as errors, of which the later ones only say what follows; or the last."""
        errors = [line.strip() for line in f"{self.stderr}\n{self.stdout}".splitlines() if "[E]" in line]
        return " ".join(errors[:3]) or self.last_line


class Transport(ABC):
    """A way to one device. Commands are lists of words; no word is ever read by a shell on the way.

    Args:
        address: How the user names the device.
        base: Directory on the device in which the working directory is made.
        python: The Python interpreter there.
    """

    is_local = False
    """Whether the device is the machine that this process runs on."""

    def __init__(self, address: str, base: str, python: str) -> None:
        self.address = address
        self.base = base
        self.python = python

    @abstractmethod
    def run(self, words: Sequence[str], *, timeout_seconds: float = COMMAND_SECONDS) -> Finished:
        """Run a command and wait for its end.

        Raises:
            DeviceError: The connection was lost, or the command took longer; then it has been stopped.
        """

    @abstractmethod
    def push(self, local: Path, remote: str) -> None:
        """Copy a file to the device.

        Raises:
            DeviceError: The connection was lost, or the file could not be written there.
        """

    @abstractmethod
    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from the device.

        Raises:
            DeviceError: The connection was lost, or there is no such file.
        """

    @abstractmethod
    def reconnect(self) -> None:
        """Connect again after the connection was lost.

        Raises:
            DeviceError: The device cannot be reached.
        """

    @abstractmethod
    def close(self) -> None:
        """End the connection."""

    def free_bytes(self, directory: str) -> int | None:
        """Return the free space of the file system that holds `directory`; None where the device does not tell."""
        done = self.run(["df", "-P", "-k", directory])
        fields = done.stdout.strip().rpartition("\n")[2].split()
        return int(fields[3]) * 1024 if done.code == 0 and len(fields) > 3 and fields[3].isdigit() else None


def command_line(words: Sequence[str]) -> str:
    """Return words as one line that a POSIX shell splits into exactly these words."""
    return shlex.join(words)


@dataclass(slots=True)
class Workspace:
    """One directory on the device, which holds everything that is written there."""

    transport: Transport
    directory: str
    remarks: list[str] = field(default_factory=list)
    is_resumed: bool = False
    """Whether files of an earlier try may be there."""

    def path(self, name: str) -> str:
        """Return the path of a file in it."""
        return f"{self.directory}/{name}"

    def push(self, local: Path, name: str) -> None:
        """Copy a file into it, after checking that there is room. One that is there already is not copied again."""
        if self.is_resumed and self.holds(local, name):
            return
        size, free = local.stat().st_size, self.transport.free_bytes(self.directory)
        if free is not None and free < size:
            raise faults.full_disk(self.transport.address, self.directory, size, free)
        self.transport.push(local, self.path(name))

    def pull(self, name: str, folder: Path, *, largest_bytes: int = LARGEST_ANSWER_BYTES) -> Path:
        """Copy a file out of it into `folder`, to be read as a whole; return where it is.

        Raises:
            DeviceError: The connection was lost, there is no such file, or it is larger.
        """
        local = folder / name
        self.transport.pull(self.path(name), local)
        size = local.stat().st_size
        if size > largest_bytes:
            raise faults.too_large(self.transport.address, name, size, largest_bytes)
        return local

    def holds(self, local: Path, name: str) -> bool:
        """Return whether the file of that name is there with the content of `local`."""
        done = self.transport.run(["sha256sum", self.path(name)], timeout_seconds=_HASH_SECONDS)
        return done.code == 0 and done.stdout.split()[:1] == [hash_file(local)]

    def inside(self, name: str) -> "Workspace":
        """Return a directory in it, made if it is not there.

        Raises:
            DeviceError: It cannot be made.
        """
        made = self.transport.run(["mkdir", "-p", self.path(name)])
        if made.code != 0:
            raise faults.no_directory(self.transport.address, self.directory, made.last_line)
        return Workspace(self.transport, self.path(name), self.remarks, self.is_resumed)

    def has(self, name: str) -> bool:
        """Return whether a file of that name is there and not empty."""
        return self.transport.run(["test", "-s", self.path(name)]).code == 0

    def remove(self, name: str) -> None:
        """Remove a file or a directory, if it is there."""
        self.transport.run(["rm", "-rf", "--", self.path(name)])

    def run_long(self, words: Sequence[str], timeout_seconds: float) -> Finished:
        """Run a command that is stopped when the directory is left or taken up again.

        Raises:
            DeviceError: As for each command.
        """
        return self.transport.run(["sh", "-c", _START, self.directory, *words], timeout_seconds=timeout_seconds)

    def stop(self) -> None:
        """Stop what still works in it.

        Raises:
            DeviceError: As for each command.
        """
        self.transport.run(["sh", "-c", _STOP, self.directory])

    def restore_clocks(self) -> str:
        """Put clocks back that a run locked; return why that failed, or nothing.

        Raises:
            DeviceError: As for each command.
        """
        done = self.transport.run(["sh", "-c", _RESTORE, self.path(CLOCKS_FILE)])
        return "" if done.code == 0 else done.last_line or f"jetson_clocks ended with code {done.code}"

    def recover(self) -> None:
        """Connect again, stop what still works there, put clocks back, and go on with the files that are there.

        Raises:
            DeviceError: The device cannot be reached, or the directory cannot be made again.
        """
        self.transport.reconnect()
        _put_back(self)
        # A board that restarted has emptied /tmp.
        done = self.transport.run(["mkdir", "-p", self.directory])
        if done.code != 0:
            raise faults.no_directory(self.transport.address, self.transport.base, done.last_line)
        self.is_resumed = True


@contextmanager
def workspace(transport: Transport, *, keep: bool = False, resume: str | None = None) -> Iterator[Workspace]:
    """Make one directory on the device and remove it in the end, also after a failure.

    Args:
        transport: The way to the device.
        keep: Leave the directory, for a look at what is in it.
        resume: Directory of an earlier try to go on in; empty makes a new one. None where no later try can go on in it.

    Raises:
        DeviceError: It cannot be made, or is not there; or the block failed and the directory could not be removed,
            with its name.
    """
    directory = _known_directory(transport, resume) if resume else _make_directory(transport)
    place = Workspace(transport, directory, is_resumed=bool(resume))
    try:
        if resume:
            _put_back(place)
        yield place
    except DeviceError as error:
        left = _leave(place, keep=keep)
        if left:
            raise faults.left_behind(error, left, None if resume is None else place.directory) from error
        raise
    except BaseException:
        left = _leave(place, keep=keep)
        if left:
            logging.getLogger(__name__).warning(left)
        raise
    left = _leave(place, keep=keep)
    if left:
        place.remarks.append(left)


def _make_directory(transport: Transport) -> str:
    if not transport.base.startswith("/"):
        raise faults.no_directory(transport.address, transport.base, "it is no absolute path")
    done = transport.run(["mktemp", "-d", "-p", transport.base, f"{_PREFIX}XXXXXXXXXX"])
    directory = done.stdout.strip()
    start = f"{transport.base.rstrip('/')}/{_PREFIX}"
    # The answer is removed recursively in the end, so it must be what was asked for and nothing else.
    if done.code == 0 and directory.startswith(start) and _MADE.fullmatch(directory.removeprefix(start)):
        return directory
    raise faults.no_directory(transport.address, transport.base, done.last_line or f"exit code {done.code}")


def _known_directory(transport: Transport, directory: str) -> str:
    """Return a directory of an earlier try. It is removed in the end, so only one of ours is taken."""
    name = directory.rpartition("/")[2]
    if not directory.startswith("/") or not name.startswith(_PREFIX) or not _MADE.fullmatch(name.removeprefix(_PREFIX)):
        raise faults.no_directory(transport.address, directory, "it is not the directory of an earlier try")
    if transport.run(["test", "-d", directory]).code != 0:
        raise faults.no_directory(transport.address, directory, "it is not there any more; start without resume")
    return directory


def _leave(place: Workspace, *, keep: bool) -> str:
    """Leave the device as it was; connect again once. Return what is left there, or nothing."""
    where = f"{place.directory} on {place.transport.address}"
    for again in (False, True):
        try:
            if again:
                place.transport.reconnect()
            problem = _put_back(place)
            if problem:
                restore = f"sudo jetson_clocks --restore {place.path(CLOCKS_FILE)}"
                return f"Clocks are still locked: {problem}. `{restore}` there puts them back; then remove {where}."
            if keep:
                return f"Everything is kept in {where}."
            return "" if _removed(place) else f"{where} could not be removed; remove it by hand."
        except DeviceError:
            continue
    return f"{where} could not be removed, since the device could not be reached; remove it by hand."


def _put_back(place: Workspace) -> str:
    """Stop what works there and put clocks back; return why they are still locked, or nothing."""
    place.stop()
    return place.restore_clocks()


def _removed(place: Workspace) -> bool:
    return place.transport.run(["rm", "-rf", "--", place.directory]).code == 0
