"""What an isolated step may use."""

from dataclasses import dataclass

from edgesmith.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Isolation:
    """Runs every step in a process of its own and ends that process when it takes too much.

    The result of a step is the same, byte for byte, as without.
    """

    time_limit_seconds: float = 3600.0
    """Longest time that one step may take, with everything that it asks of the run."""
    memory_limit_mib: int | None = None
    """Most memory of the process and its children together, with what they share counted once where that is known.

    None takes 90 % of what is free when a step begins.
    """

    def __post_init__(self) -> None:
        if not self.time_limit_seconds > 0 or (self.memory_limit_mib is not None and self.memory_limit_mib < 1):
            raise RecipeError(
                f"the limits {self} leave a step nothing",
                expected="more than 0 seconds, and at least 1 MiB",
                why="No step could end within them.",
                fix="Give larger limits, or leave them out for the defaults.",
            )
