"""An Android device over the debug bridge (adb). The device's shell reads every command line; each word is quoted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgesmith.device import faults
from edgesmith.device.address import Address
from edgesmith.device.transport import COMMAND_SECONDS, Finished, Transport, command_line
from edgesmith.errors import DeviceError

try:
    import adbutils
except ImportError as _error:
    raise faults.missing_extra("adb://", "adbutils") from _error

ResultT = TypeVar("ResultT")

_GONE = ("not found", "offline", "connect to adb server")
_CONFIRM = "Unlock the device and confirm this computer in the dialog about USB debugging; see `adb devices`."


class AdbTransport(Transport):
    """Runs commands in the shell of an Android device and copies files over the sync service.

    Args:
        address: Serial number of the device.
        base: Directory on the device in which the working directory is made.
        python: The Python interpreter there; Android brings none.
        client: Connection to an adb server; None takes the one on this machine, which is started if need be.

    Raises:
        DeviceError: There is no such device, it is offline, or it has not confirmed this computer.
    """

    def __init__(self, address: Address, base: str, python: str, client: "adbutils.AdbClient | None" = None) -> None:
        super().__init__(str(address), base, python)
        self._serial = address.host
        self._client = client or adbutils.AdbClient()
        self._connected = False
        self.reconnect()

    def run(self, words: Sequence[str], *, timeout_seconds: float = COMMAND_SECONDS) -> Finished:
        """Run a command and wait for its end."""
        line = command_line(words)
        # Given as text: adbutils joins lists by the rules of Windows, which an Android shell does not follow.
        done: Any = self._explained(
            lambda: self._device().shell2(line, timeout=timeout_seconds, v2=True), line, timeout_seconds
        )
        # Old devices tell both streams as one.
        stdout = done.stdout if done.stdout or done.stderr else done.output
        return Finished(done.returncode, stdout, done.stderr)

    def push(self, local: Path, remote: str) -> None:
        """Copy a file to the device."""
        self._explained(lambda: self._device().sync.push(local, remote, mode=0o644, check=True), remote, copying=True)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from the device."""
        self._explained(lambda: self._device().sync.pull_file(remote, local), remote, copying=True)

    def reconnect(self) -> None:
        """Ask the server whether the device is there."""
        self._connected = False
        state = self._explained(lambda: self._device().get_state(), "get-state")
        if state != "device":
            raise faults.unreachable(self.address, f"adb says that it is {state!r}")
        self._connected = True

    def close(self) -> None:
        """Each command has a connection of its own; there is none to end."""

    def _device(self) -> "adbutils.AdbDevice":
        return self._client.device(serial=self._serial)

    def _explained(
        self, work: Callable[[], ResultT], what: str, seconds: float = COMMAND_SECONDS, *, copying: bool = False
    ) -> ResultT:
        try:
            return work()
        except adbutils.AdbTimeout as error:
            raise faults.took_too_long(self.address, what, seconds) from error
        except adbutils.AdbError as error:
            raise self._refusal(str(error), what, copying) from error
        except (OSError, EOFError) as error:
            reason = str(error) or type(error).__name__
            lost = faults.lost_connection if self._connected else faults.unreachable
            raise lost(self.address, reason) from error

    def _refusal(self, message: str, what: str, copying: bool) -> DeviceError:
        if "unauthorized" in message:
            return faults.not_admitted(self.address, _CONFIRM)
        if message == "closed" or any(sign in message for sign in _GONE):
            return (faults.lost_connection if self._connected else faults.unreachable)(self.address, message)
        if copying:
            return faults.not_copied(self.address, what, message)
        return faults.failed(self.address, f"`{what}`", message)
