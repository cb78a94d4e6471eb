"""The recipe: a declared list of steps with data and budget, validated before a model is loaded."""

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesmith.errors import RecipeError
from edgesmith.host.names import suggest

_LARGEST_BYTES = 1_000_000
_LONGEST_SIZE = 9
"""Digits of the largest size of a dimension."""


class _PlainLoader(yaml.SafeLoader):
    """Plain data without aliases, which let a small file stand for a huge one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


class Step(BaseModel):
    """One method with its options. Options are checked against the method's own schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(description="Method name, or `distribution:name` where two plugins bring the same name.")
    options: Mapping[str, object] = Field(default_factory=dict)


class Budget(BaseModel):
    """What the user asks for. A result that misses it is returned all the same, with the distance in the verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
        description="Keep every step, or undo one that loses more metric than the budget allows or gains nothing in "
        "what the budget names (time, size, or either).",
    )
    metric: str | None = Field(default=None, description="Metric name; by default chosen by task and labels.")
    shapes: Mapping[str, int] = Field(
        default_factory=dict,
        description="Open dimension of the inputs to the size that it gets before the first step, such as batch: 1.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32)
    required_plugins: tuple[str, ...] = Field(
        default=(), description="Distributions with version ranges that must be installed."
    )


_PARTS: dict[str, tuple[str, type[BaseModel]]] = {"steps": ("a step", Step), "budget": ("the budget", Budget)}


def bundled_recipes() -> dict[str, Path]:
    """Return the recipes that ship with Edgesmith, by name."""
    folder = Path(__file__).with_name("recipes")
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(source: "str | Path | Mapping[str, object] | Recipe") -> Recipe:
    """Return the recipe in a YAML or JSON file, the bundled recipe of that name, or the mapping as a recipe.

    Raises:
        RecipeError: There is no such file or recipe, it is not valid YAML, or a field is wrong.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return _parse(source, "the recipe")
    bundled = bundled_recipes()
    path = bundled.get(str(source), Path(source))
    try:
        _require_bounded(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        close = difflib.get_close_matches(str(source), bundled, n=1)
        raise RecipeError(
            f"Recipe {str(source)!r} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}.",
            expected=f"a YAML or JSON file, or one of the bundled recipes: {', '.join(bundled)}.",
            why="The recipe says which steps to run.",
            fix=f"Did you mean {close[0]!r}?" if close else "Check the path, or write a recipe (see README.md).",
        ) from error
    try:
        data = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(
            f"Recipe {path} is not valid YAML: {str(error).splitlines()[0]}.",
            expected="YAML or JSON text.",
            why="A recipe that cannot be parsed cannot be run.",
            fix="Correct the file; `edgesmith schema` prints the schema for your editor.",
        ) from error
    return _parse(data, f"recipe {path}")


def with_shapes(recipe: Recipe, words: Sequence[str]) -> Recipe:
    """Return `recipe` with sizes for open dimensions, each given as NAME=SIZE, beside or instead of its own.

    Raises:
        RecipeError: A word has another form.
    """
    shapes = dict(recipe.shapes)
    for word in words:
        name, _, size = word.rpartition("=")
        if not name or not size.isdecimal() or len(size) > _LONGEST_SIZE:
            raise RecipeError(
                f"--shape {word} is no size.",
                expected="NAME=SIZE, such as --shape batch=1",
                why="An open dimension of the inputs gets that size before the first step.",
                fix="Correct it; `edgesmith inspect` lists the dimensions.",
            )
        shapes[name] = int(size)
    return recipe.model_copy(update={"shapes": shapes})


def _require_bounded(path: Path) -> None:
    size = path.stat().st_size
    if size > _LARGEST_BYTES:
        raise RecipeError(
            f"Recipe {path} is too large: {size} bytes.",
            expected=f"at most {_LARGEST_BYTES} bytes.",
            why="A recipe is a short list of steps; this is something else.",
            fix="Check the path. Was a model or data file meant?",
        )


def _parse(data: object, where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise _misread(data, where, error) from error


def _misread(data: object, where: str, error: ValidationError) -> RecipeError:
    """Return the error for the first wrong field, in the words of the part of the recipe that it stands in."""
    problems = error.errors()
    # Where a name is mistyped, the right one misses too, and says less.
    first = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
    place = first["loc"]
    part, kind = _PARTS.get(str(place[0]), ("the recipe", Recipe)) if len(place) > 1 else ("the recipe", Recipe)
    if first["type"] != "extra_forbidden":
        fix = "Correct that field; `edgesmith schema` prints the whole schema."
    elif kind is Step and not difflib.get_close_matches(str(place[-1]), Step.model_fields, n=1, cutoff=0.8):
        method = _method_at(data, place)
        fix = f"If it is an option of the method, put it below `options`; `edgesmith methods{method}` lists them."
    else:
        fix = suggest(str(place[-1]), kind.model_fields)
    return RecipeError(
        f"In {where}, {'.'.join(map(str, place)) or 'the top level'}: {first['msg'].lower()} "
        f"(got {reprlib.repr(first['input'])}).",
        expected=f"{part}: a mapping with the fields {', '.join(kind.model_fields)}.",
        why="A misread recipe would compile something else than you asked for.",
        fix=fix,
    )


def _method_at(data: object, place: tuple[int | str, ...]) -> str:
    """Return the name of the method of the step at `place` behind a space, or nothing where it has none."""
    steps = data.get("steps") if isinstance(data, Mapping) else None
    step = steps[place[1]] if isinstance(steps, Sequence) and isinstance(place[1], int) else None
    method = step.get("method") if isinstance(step, Mapping) else None
    return f" {method}" if isinstance(method, str) and method.isprintable() else ""
