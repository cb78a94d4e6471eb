"""Goes on with work on a device after its connection was lost."""

import time
from collections.abc import Callable
from typing import TypeVar

from edgesmith.device.transport import Workspace
from edgesmith.errors import ConnectionLostError, DeviceError
from edgesmith.progress import Progress

ResultT = TypeVar("ResultT")

_WAITS_SECONDS = (1.0, 5.0, 20.0, 60.0)
"""Between tries to connect again: a glitch is over at once, and a board starts within a minute."""


def insist(place: Workspace, work: Callable[[], ResultT], reconnects: int, progress: Progress) -> ResultT:
    """Do `work`, and again where the connection is lost on the way, which must find there what it did before.

    Args:
        place: The working directory on the device.
        work: What to do.
        reconnects: How often a lost connection is made again.
        progress: Shows that it is tried.

    Raises:
        DeviceError: The connection is lost once more than that, or the work itself failed.
    """
    left = reconnects
    while True:
        try:
            return work()
        except ConnectionLostError as error:
            left = _recover(place, reconnects, left, progress, error)


def _recover(place: Workspace, reconnects: int, left: int, progress: Progress, error: ConnectionLostError) -> int:
    """Connect again; return how many tries are left then.

    Raises:
        DeviceError: No try is left; it is the error that broke the work.
    """
    while left > 0:
        wait = _WAITS_SECONDS[min(reconnects - left, len(_WAITS_SECONDS) - 1)]
        left -= 1
        with progress.stage(f"the connection was lost; trying again in {wait:g} s"):
            time.sleep(wait)
        try:
            place.recover()
        except DeviceError:
            continue
        place.remarks.append(f"The connection was lost and made again: {error.what}")
        return left
    raise error
