"""Messages between a run and the process of one of its steps: JSON, with arrays as raw bytes behind it. No pickle."""

import json
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_LENGTH = struct.Struct(">Q")
_LARGEST_TEXT_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Message:
    """What one side tells the other."""

    content: Mapping[str, Any]
    """JSON data."""
    arrays: Mapping[str, Array] = field(default_factory=dict)


class Channel:
    """One end of a connection.

    Args:
        end: A connected socket, which the channel keeps.
        takes_arrays: Whether arrays may come in. Data goes to the step and never back, so the run says no.
    """

    def __init__(self, end: socket.socket, *, takes_arrays: bool) -> None:
        self._socket = end
        self._reading = end.makefile("rb")
        self._takes_arrays = takes_arrays

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            OSError: The other side is gone.
        """
        forms = [_form(name, array) for name, array in message.arrays.items()]
        text = json.dumps({"content": message.content, "arrays": forms}).encode()
        self._socket.sendall(_LENGTH.pack(len(text)) + text)
        for array in message.arrays.values():
            self._socket.sendall(_sendable(array).tobytes())

    def receive(self) -> Message | None:
        """Return the next message; None where the other side is gone, or sends what is no message."""
        try:
            (length,) = _LENGTH.unpack(_exactly(self._reading, _LENGTH.size))
            if length > _LARGEST_TEXT_BYTES:
                return None
            parsed = json.loads(_exactly(self._reading, length))
            if parsed["arrays"] and not self._takes_arrays:
                return None
            arrays = {form["name"]: self._array(form) for form in parsed["arrays"]}
            return Message(dict(parsed["content"]), arrays)
        except (EOFError, OSError, ValueError, KeyError, TypeError):
            return None

    def hang_up(self) -> None:
        """End the conversation, from any thread and whoever else holds the other end: nothing more comes in."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection."""
        self._reading.close()
        self._socket.close()

    def _array(self, form: Mapping[str, Any]) -> Array:
        content = bytearray(_exactly(self._reading, form["bytes"]))
        array: Array = np.frombuffer(content, np.dtype(form["dtype"])).reshape(form["shape"])
        return array.astype(object) if form["objects"] else array


def _form(name: str, array: Array) -> dict[str, Any]:
    sendable = _sendable(array)
    # Types of ml_dtypes have a name, and only a width where NumPy writes its own types with kind and byte order.
    dtype = sendable.dtype.name if sendable.dtype.kind == "V" else sendable.dtype.str
    return {
        "name": name,
        "dtype": dtype,
        "shape": list(array.shape),
        "bytes": sendable.nbytes,
        "objects": array.dtype.hasobject,
    }


def _sendable(array: Array) -> Array:
    """Return an array whose bytes say it all: texts of an object array have a fixed width then."""
    return array.astype(str) if array.dtype.hasobject else array


def _exactly(stream: IO[bytes], count: int) -> bytes:
    content = stream.read(count)
    if len(content) != count:
        raise EOFError
    return content
