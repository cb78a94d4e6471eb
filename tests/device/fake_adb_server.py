"""A fake adb server: it speaks the protocol of adb to clients, and runs what it is asked on this machine.

There is no Android behind it. It proves that the client's side of the protocol, quoting and errors work.
"""

import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path


class FakeAdbServer:
    """Knows one device. `state` is what it says of it; `before_shell` sees each command line and may break things."""

    def __init__(self, serial: str) -> None:
        self.serial, self.state, self.commands = serial, "device", []
        self.before_shell: Callable[[str, socket.socket], None] = lambda line, client: None
        self.refuse_writing = self.refuses_shells = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                while request := _request(client):
                    if not self._answer(client, request):
                        return
            except (ConnectionError, OSError, struct.error):
                return

    def _answer(self, client: socket.socket, request: str) -> bool:
        """Answer one request; return whether the connection goes on."""
        if request == "host:version":
            client.sendall(b"OKAY0004" + b"0029")
            return False
        if self.serial not in request and request.startswith("host"):
            return _fail(client, f"device '{request.rpartition(':')[2]}' not found")
        if request.startswith("host") and self.state != "device":
            return _fail(client, f"device {self.state}.")
        if request == f"host:tport:serial:{self.serial}":
            client.sendall(b"OKAY" + bytes(8))
            return True
        if request == f"host-serial:{self.serial}:get-state":
            return _text(client, self.state)
        if request == f"host-serial:{self.serial}:features":
            return _text(client, "shell_v2,cmd")
        if request.startswith("shell,v2:") and self.refuses_shells:
            return _fail(client, "closed")
        if request.startswith("shell,v2:"):
            self._shell(client, request.removeprefix("shell,v2:"))
        elif request == "sync:":
            client.sendall(b"OKAY")
            self._sync(client)
        return False

    def _shell(self, client: socket.socket, line: str) -> None:
        self.commands.append(line)
        client.sendall(b"OKAY")
        self.before_shell(line, client)
        done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=False)
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        for number, content in ((1, done.stdout), (2, done.stderr), (3, bytes([code]))):
            if content:
                client.sendall(bytes([number]) + struct.pack("<I", len(content)) + content)

    def _sync(self, client: socket.socket) -> None:
        command, length = struct.unpack("<4sI", _exactly(client, 8))
        path = _exactly(client, length).decode()
        if command == b"STAT":
            file = Path(path)
            known = (file.stat().st_mode, file.stat().st_size, 1) if file.exists() else (0, 0, 0)
            client.sendall(b"STAT" + struct.pack("<III", *known))
        elif command == b"RECV":
            if not Path(path).is_file():
                message = b"No such file or directory"
                client.sendall(b"FAIL" + struct.pack("<I", len(message)) + message)
                return
            content = Path(path).read_bytes()
            for start in range(0, len(content), 60_000):
                part = content[start : start + 60_000]
                client.sendall(b"DATA" + struct.pack("<I", len(part)) + part)
            client.sendall(b"DONE" + struct.pack("<I", 0))
        elif command == b"SEND":
            self._receive(client, Path(path.rpartition(",")[0]))

    def _receive(self, client: socket.socket, path: Path) -> None:
        content = b""
        while True:
            kind, length = struct.unpack("<4sI", _exactly(client, 8))
            if kind == b"DONE":
                break
            content += _exactly(client, length)
        if self.refuse_writing:
            client.sendall(b"FAIL" + struct.pack("<I", 4) + b"full")
            return
        path.write_bytes(content)
        client.sendall(b"OKAY" + struct.pack("<I", 0))


def _request(client: socket.socket) -> str:
    header = client.recv(4)
    return _exactly(client, int(header, 16)).decode() if len(header) == 4 else ""


def _exactly(client: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = client.recv(count - len(content))
        if not part:
            raise ConnectionError("the client went away")
        content += part
    return content


def _text(client: socket.socket, text: str) -> bool:
    client.sendall(b"OKAY" + f"{len(text):04x}{text}".encode())
    return False


def _fail(client: socket.socket, text: str) -> bool:
    client.sendall(b"FAIL" + f"{len(text):04x}{text}".encode())
    return False
