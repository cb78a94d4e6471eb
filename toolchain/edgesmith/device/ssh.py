"""A device over SSH, with the user's own keys, agent and ~/.ssh/config. Host keys are always checked.

Commands reach the device as one line, since the protocol knows nothing else; every word in it is quoted.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgesmith.device import faults
from edgesmith.device.address import Address
from edgesmith.device.transport import COMMAND_SECONDS, Finished, Transport, command_line

try:
    import asyncssh
except ImportError as _error:
    raise faults.missing_extra("ssh://", "asyncssh") from _error

ResultT = TypeVar("ResultT")

CONNECT_SECONDS = 20.0
_KEEPALIVE_SECONDS = 10
_COPY_SECONDS = 3600.0
_SSH_PORT = 22
_KNOWN_HOSTS = (Path("~/.ssh/known_hosts"), Path("/etc/ssh/ssh_known_hosts"))


class SshTransport(Transport):
    """Runs commands over SSH and copies files over SFTP.

    Args:
        address: User, host and port; what is missing is taken from ~/.ssh/config.
        base: Directory on the device in which the working directory is made.
        python: The Python interpreter there.

    Raises:
        DeviceError: The device cannot be reached, its key is not known, or it does not accept the user.
    """

    def __init__(self, address: Address, base: str, python: str) -> None:
        super().__init__(str(address), base, python)
        self._place = address
        self._runner = asyncio.Runner()
        self._connection: asyncssh.SSHClientConnection | None = None
        try:
            self.reconnect()
        except BaseException:
            self._runner.close()
            raise

    def run(self, words: Sequence[str], *, timeout_seconds: float = COMMAND_SECONDS) -> Finished:
        """Run a command and wait for its end."""
        return self._wait(self._run(words, timeout_seconds), timeout_seconds + CONNECT_SECONDS, command_line(words))

    def push(self, local: Path, remote: str) -> None:
        """Copy a file to the device."""
        self._wait(self._copy(local, remote, up=True), _COPY_SECONDS, f"copying to {remote}")

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from the device."""
        self._wait(self._copy(local, remote, up=False), _COPY_SECONDS, f"copying from {remote}")

    def reconnect(self) -> None:
        """Connect, or connect again."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        known, place = _known_hosts(), self._place
        options: dict[str, Any] = {"username": place.user} if place.user else {}
        options |= {"port": place.port} if place.port else {}
        connecting = asyncssh.connect(
            place.host,
            # Given here, so that no configuration can switch the check off.
            known_hosts=known or b"",
            password=None,
            preferred_auth="publickey",
            keepalive_interval=_KEEPALIVE_SECONDS,
            connect_timeout=CONNECT_SECONDS,
            **options,
        )
        self._connection = self._wait(_await(connecting), CONNECT_SECONDS + 1, "connecting")

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        self._runner.close()

    def _connected(self) -> "asyncssh.SSHClientConnection":
        if self._connection is None:
            raise faults.lost_connection(self.address, "it is not connected")
        return self._connection

    async def _run(self, words: Sequence[str], timeout_seconds: float) -> Finished:
        line = command_line(words)
        process = await self._connected().create_process(line, errors="replace")
        try:
            done = await asyncio.wait_for(process.wait(check=False), timeout_seconds)
        except TimeoutError as error:
            # Servers that ignore the signal end the command when it writes to the closed channel.
            process.kill()
            process.close()
            raise faults.took_too_long(self.address, line, timeout_seconds) from error
        if done.returncode is None:
            raise faults.lost_connection(self.address, f"`{line}` did not report its end")
        return Finished(done.returncode, str(done.stdout or ""), str(done.stderr or ""))

    async def _copy(self, local: Path, remote: str, *, up: bool) -> None:
        async with await self._open_sftp() as client:
            await (client.put(str(local), remote) if up else client.get(remote, str(local)))

    async def _open_sftp(self) -> "asyncssh.SFTPClient":
        connection = self._connected()
        try:
            return await connection.start_sftp_client()
        except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
            # Where the device still runs commands, it is there, and only this service of it is not.
            await connection.run("true", timeout=CONNECT_SECONDS)
            raise faults.no_sftp(self.address, str(error)) from error

    def _wait(self, work: Coroutine[Any, Any, ResultT], seconds: float, what: str) -> ResultT:
        """Run `work` to its end and explain what went wrong."""
        place = self._place
        port = f"-p {place.port} " if place.port else ""
        by_hand = f"ssh {port}{place.user + '@' if place.user else ''}{place.host}"
        try:
            return self._runner.run(asyncio.wait_for(work, seconds))
        except asyncssh.HostKeyNotVerifiable as error:
            port_there = place.port if place.port != _SSH_PORT else None
            keys = asyncssh.match_known_hosts(_known_hosts() or b"", place.host, "", port_there)[0]
            if keys:
                name = f"[{place.host}]:{port_there}" if port_there else place.host
                raise faults.changed_host(self.address, name, by_hand) from error
            raise faults.unknown_host(self.address, by_hand) from error
        except (asyncssh.PermissionDenied, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            fix = (
                f"Put your public key there (`ssh-copy-id`), start an agent for keys with passphrase, try `{by_hand}`."
            )
            raise faults.not_admitted(self.address, fix) from error
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            raise faults.lost_connection(self.address, str(error)) from error
        except asyncssh.SFTPError as error:
            raise faults.not_copied(self.address, what, str(error)) from error
        except TimeoutError as error:
            if self._connection is None:
                raise faults.unreachable(self.address, f"no answer within {CONNECT_SECONDS:g} s") from error
            raise faults.took_too_long(self.address, what, seconds) from error
        except (asyncssh.Error, OSError) as error:
            reason = str(error) or type(error).__name__
            if self._connection is None:
                raise faults.unreachable(self.address, reason) from error
            raise faults.lost_connection(self.address, reason) from error


async def _await(work: Any) -> Any:
    return await work


def _known_hosts() -> list[str]:
    return [str(file) for path in _KNOWN_HOSTS if (file := path.expanduser()).is_file()]
