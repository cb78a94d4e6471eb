"""Weights on disk: mapped instead of read, given back after use, and written away as they are made.

Pages of a mapped file count as memory of the process from the first touch until the system wants them back. So
whoever walks over the weights of a model gives each one back after use; then the walk needs the memory of the largest
weight, whatever the size of the model.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

import numpy as np
import onnx_ir as ir
import psutil
from numpy.typing import NDArray

from edgesmith.errors import OutputError

Bytes = NDArray[np.uint8]

_PIECE_BYTES = 1 << 24
_SMALL_BYTES = 1 << 16
"""Weights up to this size stay in memory: a page of a file would not be much smaller."""
_SEGMENT_BYTES = 1 << 28
_OWN_PREFIX = "edgesmith-weights-"
"""Begins the names of files that belong to a process, whose number follows."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a mapped tensor lies."""

    path: Path
    """The file as it was named when it was mapped."""
    identity: tuple[int, int]
    """Device and inode of the mapped file, which may have been replaced under its name since."""
    offset: int
    """Position of the first byte."""

    def is_still(self, path: Path) -> bool:
        """Return whether `path` names the mapped file."""
        return path.is_file() and _identity(path.stat()) == self.identity


_files: WeakKeyDictionary[mmap.mmap, tuple[Path, tuple[int, int]]] = WeakKeyDictionary()


def map_file(path: Path) -> Bytes:
    """Return the content of a file that is not empty, read from disk where and when it is used. Read-only."""
    with path.open("rb") as stream:
        mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        _files[mapping] = path.absolute(), _identity(os.fstat(stream.fileno()))
    return np.frombuffer(mapping, np.uint8)


def find_origin(tensor: ir.TensorProtocol) -> Origin | None:
    """Return where a tensor lies that comes from `map_file`; None for any other."""
    array = _array(tensor)
    mapping = None if array is None else _mapping(array)
    if array is None or mapping is None or mapping not in _files or not array.flags.c_contiguous:
        return None
    return Origin(*_files[mapping], _distance(array, mapping))


def tensor_of(content: Bytes, dtype: ir.DataType, shape: ir.Shape, name: str | None) -> ir.TensorProtocol:
    """Return the tensor whose bytes, as an ONNX file holds them, are `content`. Nothing is copied."""
    if dtype.bitwidth < 8:
        return ir.PackedTensor(content, dtype, shape=shape, name=name)
    return ir.Tensor(content.view(dtype.numpy()).reshape(shape.numpy()), dtype, shape=shape, name=name)


def stored_pieces(tensor: ir.TensorProtocol) -> Iterator[Bytes]:
    """Yield the bytes of a tensor, as an ONNX file holds them, in pieces. Mapped pages are given back after each."""
    content = _stored(tensor)
    for start in range(0, content.size, _PIECE_BYTES):
        piece = content[start : start + _PIECE_BYTES]
        yield piece
        release_array(piece)


def release(tensor: ir.TensorProtocol) -> None:
    """Give the memory of a mapped tensor back. It stays valid: its next use reads it from the file again."""
    array = _array(tensor)
    if array is not None:
        release_array(array)


def release_array(array: NDArray[Any]) -> None:
    """Give the memory of an array back if it lies in a mapped file; do nothing otherwise."""
    mapping = _mapping(array)
    if mapping is None or not array.size:
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    position = _distance(array, mapping) + low - array.ctypes.data
    start = position // mmap.PAGESIZE * mmap.PAGESIZE
    mapping.madvise(mmap.MADV_DONTNEED, start, position + high - low - start)


def is_unchangeable(tensor: ir.TensorProtocol) -> bool:
    """Return whether nobody can write to a tensor, because it lies in a file that is mapped for reading."""
    array = _array(tensor)
    return array is not None and _mapping(array) is not None and not array.flags.writeable


class WeightFile:
    """Takes the weights that a method makes into files, so that they need no memory until they are used.

    Args:
        directory: Where the files are made, such as the scratch directory of a step. It may be deleted as soon as
            all weights are in: the system keeps the content for as long as a tensor uses it. None makes each file
            in the system's directory for temporary files, and deletes it once no tensor uses it.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._deletes = directory is None
        self._directory = directory or Path(tempfile.gettempdir())
        self._path = self._directory
        self._used = 0
        self._content: Bytes = np.empty(0, np.uint8)

    def keep(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """Return a tensor equal to `tensor` that lies in a file; one that is small is returned itself.

        Raises:
            OutputError: The file cannot be written.
        """
        if tensor.nbytes <= _SMALL_BYTES or tensor.dtype == ir.DataType.STRING:
            return tensor
        try:
            if self._used + tensor.nbytes > self._content.size:
                self._begin_segment(tensor.nbytes)
            with self._path.open("r+b", buffering=0) as stream:
                stream.seek(self._used)
                for piece in stored_pieces(tensor):
                    _write(stream, piece)
        except OSError as error:
            raise OutputError(
                f"Cannot write weights to `{self._directory}`: {error.strerror or error}.",
                expected=f"room for {tensor.nbytes} more bytes there",
                why="A model that does not fit into memory is rewritten on disk.",
                fix="Free space there, or name another directory with TMPDIR.",
            ) from error
        content = self._content[self._used : self._used + tensor.nbytes]
        # The next weight begins on a page of its own, so that giving one back leaves the other alone.
        self._used += -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        return tensor_of(content, tensor.dtype, ir.Shape(tensor.shape.numpy()), tensor.name)

    def _begin_segment(self, needed: int) -> None:
        prefix = "weights-"
        if self._deletes:
            _delete_orphans(self._directory)
            prefix = f"{_OWN_PREFIX}{os.getpid()}-"
        descriptor, name = tempfile.mkstemp(prefix=prefix, dir=self._directory)
        with os.fdopen(descriptor, "wb") as stream:
            # A file that is long and empty takes no room on disk, and one mapping serves all weights in it.
            stream.truncate(max(_SEGMENT_BYTES, needed))
        self._path, self._used = Path(name), 0
        self._content = map_file(self._path)
        mapping = _mapping(self._content)
        if self._deletes and mapping is not None:
            finalize(mapping, _delete, self._path, os.getpid())


def _delete_orphans(directory: Path) -> None:
    """Delete the files of processes that were killed. One still in use elsewhere stays readable through its mapping."""
    for path in directory.glob(f"{_OWN_PREFIX}*-*"):
        owner = path.name.removeprefix(_OWN_PREFIX).partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            with suppress(OSError):  # of another user, or gone already
                path.unlink()


def _delete(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked process ends earlier than its parent, which still needs the file
        path.unlink(missing_ok=True)


def _write(stream: FileIO, piece: Bytes) -> None:
    content = piece.data
    while content:
        content = content[stream.write(content) :]


def _stored(tensor: ir.TensorProtocol) -> Bytes:
    if isinstance(tensor, ir.PackedTensor):
        return np.ascontiguousarray(tensor.numpy_packed()).reshape(-1)
    if tensor.dtype.bitwidth < 8:
        return np.frombuffer(tensor.tobytes(), np.uint8)
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)


def _array(tensor: ir.TensorProtocol) -> NDArray[Any] | None:
    """Return the array that a tensor wraps, without unpacking or converting anything; None for other tensors."""
    raw = tensor.raw if isinstance(tensor, ir.Tensor | ir.PackedTensor) else None
    return raw if isinstance(raw, np.ndarray) else None


def _distance(array: NDArray[Any], mapping: mmap.mmap) -> int:
    """Return where in a mapped file the first element of an array lies."""
    return int(array.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _mapping(array: NDArray[Any]) -> mmap.mmap | None:
    """Return the mapped file that an array lies in, or None."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner if isinstance(owner, mmap.mmap) else None
