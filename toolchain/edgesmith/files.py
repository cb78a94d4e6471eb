"""Files: writing that leaves either the old or the new content, and hashes of what is on disk.

Everything is first written beside its destination, under a name that only this module makes
(`.NAME.RANDOM.edgesmith-partial`), and then moved over it. The writer holds a lock on the partial file or directory
for as long as it lives, so a partial whose lock is free was left by a killed run and is removed by the next write to
the same destination. POSIX only, as are the runners.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgesmith.errors import OutputError

PARTIAL_SUFFIX = ".edgesmith-partial"
_SET_ASIDE_SUFFIX = ".edgesmith-old"
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free space there, or choose another place."),
    errno.EDQUOT: ("the disk quota is used up", "Free space there, or choose another place."),
    errno.EFBIG: ("the file is larger than the system allows", "Raise the file size limit, or choose another place."),
    errno.EROFS: ("the file system is read-only", "Choose a place that can be written."),
    errno.EACCES: ("permission is denied", "Change the permissions, or choose another place."),
    errno.EPERM: ("the operation is not permitted", "Change the permissions, or choose another place."),
    errno.ENOTDIR: ("a parent of it is a file", "Choose a place whose parents are directories."),
    errno.EEXIST: ("a file stands where a directory is needed", "Choose another place, or move that file away."),
    errno.ENAMETOOLONG: ("its name is too long", "Choose a shorter name."),
    errno.EBUSY: ("it is in use or a mount point", "Choose a directory below it."),
}
_DEVICE_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Faults that can only come from writing, whatever file the error names."""


def write_atomically(path: str | Path, content: bytes | str | Callable[[BinaryIO], None]) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one, never a part.

    Args:
        path: The destination. Missing parent directories are created. A symbolic link is followed.
        content: The bytes, text (written as UTF-8), or a function that writes to the binary stream it is given.

    Raises:
        OutputError: The file could not be written. Whatever stood at `path` is untouched.
    """
    path = Path(os.path.realpath(path))
    with _explained(path):
        if path.exists() and not path.is_file():
            raise _refusal(path, "it is not a regular file", "Choose the name of a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        partial, lock = _create_partial(path, directory=False)
        try:
            with os.fdopen(os.dup(lock), "wb") as stream:
                if callable(content):
                    content(stream)
                else:
                    stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            if path.exists():
                partial.chmod(path.stat().st_mode & 0o777)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(lock)


@contextmanager
def replace_directory(path: str | Path, *, marker: str | None = None) -> Iterator[Path]:
    """Yield an empty directory beside `path`, and put it in the place of `path` when the block succeeds.

    At every moment either the old or the new directory is at `path`. When the block raises, or the process dies,
    the old one stays.

    Args:
        path: The destination. Missing parent directories are created. A symbolic link is followed.
        marker: A file name. A directory at `path` that is not empty is only replaced when it holds such a file,
            which tells our own earlier results from somebody's home directory.

    Raises:
        OutputError: The directory could not be written, or something else than an earlier result stands at `path`.
    """
    path = Path(os.path.realpath(path))
    with _explained(path):
        require_replaceable(path, marker)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        partial, lock = _create_partial(path, directory=True)
    try:
        # An error while reading something inside the block is the caller's; only write faults are explained here.
        with _explained(path, within=partial):
            yield partial
        with _explained(path):
            _synchronise(partial)
            require_replaceable(path, marker)
            _swap(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def require_replaceable(path: str | Path, marker: str | None) -> None:
    """Check that `replace_directory` would accept `path`, before long work is done for it.

    Raises:
        OutputError: A file stands there, or a directory that is not empty and holds no `marker`.
    """
    path = Path(os.path.realpath(path))
    if not path.exists():
        return
    if not path.is_dir():
        raise _refusal(path, "a file stands there", "Choose the name of a directory, or move the file away.")
    if marker is not None and any(path.iterdir()) and not (path / marker).is_file():
        why = f"it is not empty and holds no `{marker}`, so it is no earlier result"
        raise _refusal(path, why, "Choose a new or an empty directory.")


def require_writable(directory: str | Path) -> None:
    """Check, by writing and deleting a small file, that results can be written into `directory`.

    Call this before long work, so that a full or read-only disk is found in the first second. Where the directory is
    missing, the nearest one above it is tried instead and nothing is created, since the work may yet be refused.

    Raises:
        OutputError: They cannot.
    """
    directory = Path(os.path.realpath(directory))
    with _explained(directory):
        existing = next(place for place in (directory, *directory.parents) if place.exists())
        partial, lock = _create_partial(existing / "probe", directory=False)
        try:
            os.write(lock, b"edgesmith")
            os.fsync(lock)
        finally:
            os.close(lock)
            partial.unlink(missing_ok=True)


def remove_leftovers(path: str | Path) -> None:
    """Remove what killed writes to `path` left beside it. Writes that still run are not touched."""
    path = Path(path)
    set_aside = _beside(path, _SET_ASIDE_SUFFIX)
    with suppress(FileNotFoundError):
        if set_aside.exists() and not path.exists():
            set_aside.rename(path)
        for entry in path.parent.iterdir():
            if entry.name.startswith(_beside(path, ".").name) and entry.name.endswith(PARTIAL_SUFFIX):
                _remove_if_abandoned(entry)


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal. Reads it in pieces."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_directory(path: str | Path) -> str:
    """Return the SHA-256 of all files below `path`: relative names and contents, not times or permissions."""
    path = Path(path)
    total = hashlib.sha256()
    files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
    for name, file in files:
        total.update(f"{len(name.encode())}:{name}:{hash_file(file)}\n".encode())
    return total.hexdigest()


def _beside(path: Path, ending: str) -> Path:
    # A long name is cut, and told from its like by a hash, because file systems limit names to 255 bytes.
    name = path.name if len(path.name) <= 40 else path.name[:30] + hashlib.sha256(path.name.encode()).hexdigest()[:10]
    return path.with_name(f".{name}{ending}")


def _create_partial(path: Path, *, directory: bool) -> tuple[Path, int]:
    """Return a new partial file or directory for `path` and the descriptor that holds its lock."""
    while True:
        partial = _beside(path, f".{secrets.token_hex(6)}{PARTIAL_SUFFIX}")
        # Until it is locked, a run that cleans up takes the partial for abandoned and removes it. Then try another.
        if directory:
            partial.mkdir()
            try:
                lock = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        else:
            lock = os.open(partial, _CREATE, 0o666)
        # Waits for such a run, which is short. Some file systems have no locks; there nothing is cleaned up either.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if partial.exists():
            return partial, lock
        os.close(lock)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_if_abandoned(partial: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            if _try_lock(descriptor):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        finally:
            os.close(descriptor)


def _synchronise(directory: Path) -> None:
    for file in directory.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _swap(partial: Path, path: Path) -> None:
    """Move `partial` to `path`. What was there before ends at `partial`, or is removed."""
    try:
        # Replaces nothing, or an empty directory, in one step. Looking first would race with other writers.
        partial.rename(path)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if not _exchange(partial, path):
        # A run killed between the two renames leaves the old directory set aside; `remove_leftovers` brings it back.
        set_aside = _beside(path, _SET_ASIDE_SUFFIX)
        shutil.rmtree(set_aside, ignore_errors=True)
        path.rename(set_aside)
        try:
            partial.rename(path)
        except OSError:
            set_aside.rename(path)
            raise
        shutil.rmtree(set_aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two directories in one step of the file system; return whether it can do that."""
    library = ctypes.CDLL(None, use_errno=True)
    exchange = 2
    if hasattr(library, "renameat2"):
        at_working_directory = -100
        names = (at_working_directory, os.fsencode(first), at_working_directory, os.fsencode(second))
        return bool(library.renameat2(*names, exchange) == 0)
    if hasattr(library, "renamex_np"):
        return bool(library.renamex_np(os.fsencode(first), os.fsencode(second), exchange) == 0)
    return False


@contextmanager
def _explained(path: Path, within: Path | None = None) -> Iterator[None]:
    """Turn a system error about writing `path` into an OutputError.

    With `within`, errors that name another place than that directory pass unchanged.
    """
    try:
        yield
    except OSError as error:
        ours = within is None or str(error.filename or "").startswith(str(within))
        if not ours and error.errno not in _DEVICE_FAULTS:
            raise
        reason, fix = _REASONS.get(error.errno or 0, (str(error.strerror or error), "Choose another place."))
        raise _refusal(path, reason, fix) from error


def _refusal(path: Path, reason: str, fix: str) -> OutputError:
    return OutputError(
        f"Cannot write `{path}`: {reason}.",
        expected="a place where files can be created and replaced",
        why="The result would be lost. What stood there before is unchanged.",
        fix=fix,
    )
