"""The recipe: a declared list of steps with data and budget, validated before a model is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Step(BaseModel):
    """One method with its options. Options are checked against the method's own schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(description="Method name, or `distribution:name` where two plugins bring the same name.")
    options: Mapping[str, object] = Field(default_factory=dict)


class Budget(BaseModel):
    """What the user asks for. The best stage found is returned also when it misses the budget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_metric_drop: float | None = Field(
        default=None, ge=0, description="Largest loss against the source, in the metric's unit (points for accuracy)."
    )
    max_latency_ms: float | None = Field(default=None, gt=0, description="Largest median latency per batch.")
    max_size_bytes: int | None = Field(default=None, gt=0, description="Largest artifact model size.")
    min_speedup: float | None = Field(default=None, gt=0, description="Smallest speed-up against the source.")


class Recipe(BaseModel):
    """What to do to a model, independent of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    name: str = "recipe"
    summary: str = ""
    target: str | None = Field(default=None, description="Default target; `--target` overrides it.")
    steps: tuple[Step, ...]
    budget: Budget = Field(default_factory=Budget)
    keep: Literal["always", "if-pays"] = Field(
        default="always",
        description="Keep every step, or undo a step that misses the budget or gains nothing measured.",
    )
    seed: int = 0
    required_plugins: tuple[str, ...] = Field(
        default=(), description="Distributions with version ranges that must be installed."
    )


def load_recipe(source: str | Path) -> Recipe:
    """Return the recipe in a YAML or JSON file, or the bundled recipe of that name."""
    raise NotImplementedError
