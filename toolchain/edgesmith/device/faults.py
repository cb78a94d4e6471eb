"""What goes wrong with devices, each with what to do next."""

from edgesmith.errors import ConnectionLostError, DeviceError, RejectedModelError

_NO_ROOM = ("No space left on device", "Errno 28", "Disk quota exceeded")
_WHY_NUMBERS = "Numbers of a device come from that device or from nowhere."


def bad_address(text: str) -> DeviceError:
    """Return the error for an address that names no device."""
    return DeviceError(
        f"{text!r} names no device.",
        expected="local, ssh://user@host, ssh://user@host:port or adb://serial",
        why="The artifact must be copied to where it will run.",
        fix="Name the device in one of these forms; options and passwords have no place in it.",
    )


def missing_extra(address: str, package: str) -> DeviceError:
    """Return the error for a transport whose package is not installed here."""
    return DeviceError(
        f"{address} needs the package {package}, which is not installed here.",
        expected="the extra `device` of Edgesmith",
        why="Without it there is no connection to the device.",
        fix="pip install 'edgesmith[device]'",
    )


def unreachable(address: str, reason: str) -> DeviceError:
    """Return the error for a device that does not answer."""
    return DeviceError(
        f"{address} cannot be reached: {reason}.",
        expected="a device that is on, in the network, and listens",
        why=_WHY_NUMBERS,
        fix="Check address, port, cable and power; try `ssh` or `adb devices` by hand.",
    )


def lost_connection(address: str, reason: str) -> ConnectionLostError:
    """Return the error for a connection that broke."""
    return ConnectionLostError(
        f"The connection to {address} was lost: {reason}.",
        expected="a connection that lasts until the results are here",
        why="Results that did not arrive are not reported, and nothing was recorded.",
        fix="Check network and power supply (boards reset when the supply is too weak), then start again.",
    )


def restarted(address: str) -> ConnectionLostError:
    """Return the error for a device that started anew between two commands, which some connections do not tell."""
    return ConnectionLostError(
        f"{address} restarted while it was timed.",
        expected="one run of the device from the first time to the last",
        why="Clocks and limits that were set by hand are gone after a start, and times before and after differ.",
        fix="Check its power supply (boards reset when the supply is too weak) and its heat, then start again.",
    )


def no_sftp(address: str, reason: str) -> DeviceError:
    """Return the error for a device whose SSH server offers no SFTP, which copies files."""
    return DeviceError(
        f"The SSH server of {address} offers no SFTP: {reason}.",
        expected="the subsystem sftp of the SSH server, by which files are copied",
        why="Commands work there, but the artifact cannot be copied.",
        fix="On the device, install openssh-sftp-server and put `Subsystem sftp internal-sftp` into "
        "/etc/ssh/sshd_config; then restart sshd. `sftp` by hand shows whether it works.",
    )


def unknown_host(address: str, command: str) -> DeviceError:
    """Return the error for a host of which no key is known."""
    return DeviceError(
        f"The host key of {address} is not among the known hosts.",
        expected="a key in ~/.ssh/known_hosts or /etc/ssh/ssh_known_hosts",
        why="Another machine could pretend to be the device and receive the model.",
        fix=f"Run `{command}` once, compare the fingerprint with the device's, and accept it.",
    )


def changed_host(address: str, name: str, command: str) -> DeviceError:
    """Return the error for a host whose key is another than the one that is known under `name`."""
    return DeviceError(
        f"WARNING: the host key of {address} is another than the known one.",
        expected="the key in ~/.ssh/known_hosts or /etc/ssh/ssh_known_hosts",
        why="Another machine may pretend to be the device, to receive the model; or the device was set up anew.",
        fix="Find out which. Only if it was set up anew: compare its fingerprint, remove the old key with "
        f"`ssh-keygen -R '{name}'`, and accept the new one with `{command}`.",
    )


def not_admitted(address: str, fix: str) -> DeviceError:
    """Return the error for a device that refuses the user."""
    return DeviceError(
        f"{address} does not let you in.",
        expected="a key that the device accepts, from ~/.ssh or an agent, or a confirmed computer for adb",
        why="Edgesmith asks for no passwords and keeps none.",
        fix=fix,
    )


def took_too_long(address: str, command: str, seconds: float) -> DeviceError:
    """Return the error for a command that did not end in time."""
    return DeviceError(
        f"`{command}` on {address} took longer than {seconds:g} s and was stopped.",
        expected="an answer within that time",
        why="A device that hangs would block everything after it.",
        fix="Give more time (--set timeout=SECONDS), or stop other work there; `edgesmith validate` also takes fewer "
        "samples (--set samples=COUNT).",
    )


def full_disk(address: str, directory: str, size: int, free: int) -> DeviceError:
    """Return the error for a device without room."""
    return DeviceError(
        f"{directory} on {address} has {free / 1e6:.1f} MB free; a file of {size / 1e6:.1f} MB is to go there.",
        expected="room for the model, its inputs and its outputs",
        why="A model that is cut short would fail in ways that look like other faults.",
        fix="Free space there, or name another directory on the device with --set directory=PATH.",
    )


def not_copied(address: str, path: str, reason: str) -> DeviceError:
    """Return the error for a file that could not be copied."""
    return DeviceError(
        f"{path} could not be copied to or from {address}: {reason}.",
        expected="a directory on the device that can be written, and a copying service there (SFTP or adb sync)",
        why=_WHY_NUMBERS,
        fix="Check free space and permissions there, or name another directory with --set directory=PATH.",
    )


def too_large(address: str, name: str, size: int, largest: int) -> DeviceError:
    """Return the error for an answer that is too large to be read."""
    return DeviceError(
        f"{name} on {address} is {size / 1e6:.1f} MB large.",
        expected=f"at most {largest / 1e6:.1f} MB",
        why="It is read as a whole, and would fill the memory here.",
        fix="Look at it on the device with --keep; outputs of many values are smaller with --set batch_size=1.",
    )


def no_directory(address: str, base: str, reason: str) -> DeviceError:
    """Return the error for a device on which no working directory can be made."""
    return DeviceError(
        f"No working directory can be made in {base} on {address}: {reason}.",
        expected="a POSIX system with mktemp and a directory that can be written",
        why="Everything that is copied stays in one directory, so that it can be removed.",
        fix="Name a directory that can be written with --set directory=PATH.",
    )


def left_behind(error: DeviceError, left: str, resumable: str | None) -> DeviceError:
    """Return `error` with the note of what is left on the device, in a directory that a validation may go on in."""
    resume = f" `edgesmith validate --set resume={resumable}` uses what is there." if resumable else ""
    return DeviceError(
        error.what,
        expected=error.expected,
        why=error.why,
        fix=f"{error.fix} {left}{resume}",
    )


def killed(address: str, what: str, signal_name: str) -> RejectedModelError:
    """Return the error for a process that a signal ended; with another model it may not come to that."""
    cause = ", most likely because memory ran out" if signal_name == "SIGKILL" else ""
    return RejectedModelError(
        f"{what} on {address} was ended by {signal_name}{cause}.",
        expected="a process that runs to its end",
        why="There is no result to report.",
        fix="Free memory there (stop the desktop and other programs); `edgesmith validate` also takes smaller batches "
        "(--set batch_size=1).",
    )


def missing_runtime(address: str, what: str, reason: str, fix: str) -> DeviceError:
    """Return the error for a device that cannot run the artifact for want of software."""
    return DeviceError(
        f"{address} has no usable {what}: {reason}.",
        expected="the runtime that the artifact was built for",
        why="Another runtime would give other numbers than those of the product.",
        fix=fix,
    )


def wrong_architecture(address: str, reason: str, wanted: str) -> DeviceError:
    """Return the error for a device of another kind than the artifact was built for."""
    return DeviceError(
        f"{address} is not of the architecture that the artifact is for: {reason}.",
        expected=wanted,
        why="Programs and engines run only on the architecture that they were built for.",
        fix="Name the right device, or compile for this one with --target.",
    )


def failed(address: str, what: str, reason: str) -> DeviceError:
    """Return the error for a program that ended with an error on the device."""
    if any(sign in reason for sign in _NO_ROOM):
        fix = "Free space there, or name another directory on the device with --set directory=PATH."
    else:
        fix = "Look at the message; `edgesmith validate --keep` leaves an artifact there, to repeat it by hand."
    return DeviceError(
        f"{what} on {address} failed: {reason}",
        expected="a run without errors, as in the simulation",
        why="The product would fail in the same way.",
        fix=fix,
    )


def rejected(error: DeviceError, label: str) -> DeviceError:
    """Return the error for a stage whose engine a device does not build, for the reason in `error`.

    It is `error` itself where another engine would fare no better.
    """
    if _is_of_the_device(error):
        return error
    return RejectedModelError(
        f"{label}: {error.what}",
        expected="a graph of which the device's runtime builds an engine",
        why="A stage that does not build there cannot be timed, and would not run in the product.",
        fix="Leave the step out, or change its options; `edgesmith lint` names what this runtime is known to refuse.",
    )


def of_the_model(error: DeviceError) -> DeviceError:
    """Return `error` as one of the model that ran, or itself where another model would fare no better."""
    if _is_of_the_device(error):
        return error
    return RejectedModelError(error.what, expected=error.expected, why=error.why, fix=error.fix)


def _is_of_the_device(error: DeviceError) -> bool:
    return isinstance(error, ConnectionLostError) or any(sign in error.what for sign in _NO_ROOM)
