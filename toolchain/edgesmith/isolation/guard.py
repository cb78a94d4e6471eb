"""What every process that the host starts for a plugin's code does first."""

import os
import resource
import signal
import sys


def end_with_the_run(descriptor: int) -> None:
    """Have a guard end this process group when the run ends, however that happens and whatever this process is doing.

    Standard input is a pipe of which the run, and nobody else, holds the other end. No core is dumped.

    Args:
        descriptor: The connection to the run, which the guard does not keep.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.fork() == 0:
        os.close(descriptor)
        os.read(sys.stdin.fileno(), 1)
        os.killpg(0, signal.SIGKILL)
    replace_by_nothing(sys.stdin.fileno())
    # What a forked worker says would mix with what this process says.
    os.register_at_fork(after_in_child=lambda: replace_by_nothing(descriptor))


def replace_by_nothing(descriptor: int) -> None:
    """Put the null device in the place of what `descriptor` stands for."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor)
    os.close(nothing)
