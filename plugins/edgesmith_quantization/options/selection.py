"""The options that say which nodes a method may touch."""

from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict, Field


class Selection(BaseModel):
    """Which nodes a method may touch, by name. The options of every method of this family extend it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    only: tuple[str, ...] = Field(
        default=(),
        description="Names of the only nodes to quantize; empty means all. `*` and `?` match as in file names.",
    )
    skip: tuple[str, ...] = Field(
        default=(), description="Names of nodes to leave in float; `*` and `?` match as in file names."
    )

    def obstacle(self, name: str) -> str:
        """Return why the node of that name is not selected, or an empty string."""
        if any(fnmatchcase(name, pattern) for pattern in self.skip):
            return "named in the option skip"
        if self.only and not any(fnmatchcase(name, pattern) for pattern in self.only):
            return "not named in the option only"
        return ""
