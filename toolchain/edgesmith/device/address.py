"""Addresses of devices, and the transports that they stand for."""

import re
import sys
from dataclasses import dataclass
from typing import Literal

from edgesmith.device import faults
from edgesmith.device.transport import Transport

_SSH = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][\w.-]*)(?::(?P<port>\d{1,5}))?/?"
)
_ADB = re.compile(r"adb://(?P<serial>[A-Za-z0-9][\w.:-]*)/?")
_LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """Where a device is."""

    kind: Literal["local", "ssh", "adb"]
    host: str = ""
    """Host name or address; the serial number for adb."""
    user: str = ""
    port: int | None = None

    def __str__(self) -> str:
        if self.kind == "local":
            return "local"
        user, port = f"{self.user}@" if self.user else "", f":{self.port}" if self.port else ""
        host = f"[{self.host}]" if self.kind == "ssh" and ":" in self.host else self.host
        return f"{self.kind}://{user}{host}{port}"


def parse_address(text: str) -> Address:
    """Return the device that `text` names: local, ssh://user@host:port or adb://serial.

    Raises:
        DeviceError: It names none.
    """
    if text == "local":
        return Address("local")
    if found := _SSH.fullmatch(text):
        port = int(found["port"]) if found["port"] else None
        if port is None or 0 < port <= _LARGEST_PORT:
            return Address("ssh", found["host"].strip("[]"), found["user"] or "", port)
    elif found := _ADB.fullmatch(text):
        return Address("adb", found["serial"])
    raise faults.bad_address(text)


def open_transport(address: Address, *, directory: str = "", python: str = "") -> Transport:
    """Return a connected transport.

    Args:
        address: The device.
        directory: Directory on the device to work in; empty takes its usual place for temporary files.
        python: Python interpreter on the device; empty takes `python3`, and this one for `local`.

    Raises:
        DeviceError: The package for it is missing here, or the device cannot be reached.
    """
    if address.kind == "local":
        from edgesmith.device.local import LocalTransport

        return LocalTransport(directory, python or sys.executable)
    if address.kind == "ssh":
        from edgesmith.device.ssh import SshTransport

        return SshTransport(address, directory or "/tmp", python or "python3")
    from edgesmith.device.adb import AdbTransport

    return AdbTransport(address, directory or "/data/local/tmp", python or "python3")
