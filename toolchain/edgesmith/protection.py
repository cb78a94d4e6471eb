"""Protection: which places of which weights a lossy method must leave alone, kept in a file beside the model.

Pruning removes none of these places, quantization rounds them more finely or not at all, recovery freezes them.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgesmith.errors import RecipeError
from edgesmith.files import write_atomically

PROTECTION_ASSET = "protection.json"
"""Name of the file among a model's assets in which a step leaves a protection for the steps behind it."""

Choice = Literal["units"] | Path | None
"""Type of the option `protect`: what analyse-units left, a file, or nothing."""

_LARGEST_BYTES = 64_000_000


class ProtectedAxis(BaseModel):
    """The places to keep on one axis of a weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int = Field(ge=1, description="Length of the axis that the places were counted on.")
    kept: tuple[int, ...] = Field(description="Places to keep, increasing.")

    @model_validator(mode="after")
    def _fits(self) -> "ProtectedAxis":
        if list(self.kept) != sorted(set(self.kept)) or any(not 0 <= place < self.length for place in self.kept):
            raise ValueError(f"kept must hold different places from 0 to {self.length - 1} in increasing order")
        return self


class Protection(BaseModel):
    """Places to keep, by weight and axis, with the model and the data that they were found with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["edgesmith-protection-1"] = "edgesmith-protection-1"
    model: str = Field(
        default="",
        description="Digest of the model that it was made for (`Model.digest`); empty where a step cut that since.",
    )
    data: str = Field(default="", description="What data it was made with, for people.")
    weights: Mapping[str, Mapping[int, ProtectedAxis]] = Field(
        default_factory=dict, description="Initializer name to axis to places."
    )

    def places(self, weight: str, axis: int, length: int) -> frozenset[int]:
        """Return the places to keep on an axis of a weight; empty where nothing is protected.

        Args:
            weight: Name of the initializer.
            axis: Its axis, counted from 0.
            length: Length of that axis now.

        Raises:
            RecipeError: The axis had another length when the file was made, so places would be other channels.
        """
        found = self.weights.get(weight, {}).get(axis)
        if found is None:
            return frozenset()
        if found.length != length:
            raise RecipeError(
                f"the protection counts {found.length} places on axis {axis} of {weight}, the model has {length}",
                expected="a protection that was made for this model",
                why="Places of another model are other channels.",
                fix="Analyse the model as it is at this step, or use the step before the one that changed the weight.",
            )
        return frozenset(found.kept)

    def require_known(self, weights: Collection[str]) -> None:
        """Check that it can be of a model at all.

        Args:
            weights: Names of the initializers of the model.

        Raises:
            RecipeError: It names weights, and the model has none of them.
        """
        if self.weights and not any(name in weights for name in self.weights):
            raise RecipeError(
                f"the model has none of the {len(self.weights)} weights of the protection, such as "
                f"{next(iter(self.weights))}",
                expected="a protection that was made for this model",
                why="Nothing would be protected.",
                fix="Analyse this model, or name the file that belongs to it.",
            )

    def unknown(self, weights: Collection[str]) -> tuple[str, ...]:
        """Return the weights that it names and a model does not have: nothing of them is protected there.

        Args:
            weights: Names of the initializers of the model.
        """
        return tuple(name for name in self.weights if name not in weights)

    def including(self, shapes: Mapping[str, Sequence[int]]) -> "Protection":
        """Return the protection for a model with more weights, all of whose places are to be kept.

        Args:
            shapes: Initializer name to its shape.
        """
        weights: dict[str, Mapping[int, ProtectedAxis]] = dict(self.weights)
        for name, shape in shapes.items():
            weights[name] = {0: ProtectedAxis(length=shape[0], kept=tuple(range(shape[0])))}
        return self.model_copy(update={"model": "", "weights": weights})

    def without(self, removed: Mapping[tuple[str, int], Collection[int]]) -> "Protection":
        """Return the protection for a model that lost places which were not protected. It names no model any more.

        Args:
            removed: Weight and axis to the places that are gone.
        """
        weights = {name: dict(axes) for name, axes in self.weights.items()}
        for (name, axis), gone in removed.items():
            held = weights.get(name, {}).get(axis)
            if held is not None:
                left = [place for place in range(held.length) if place not in gone]
                moved = tuple(index for index, place in enumerate(left) if place in set(held.kept))
                weights[name][axis] = ProtectedAxis(length=len(left), kept=moved)
        return self.model_copy(update={"model": "", "weights": weights})

    def save(self, path: str | Path) -> None:
        """Write it as JSON, as a whole or not at all.

        Raises:
            OutputError: It could not be written.
        """
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Protection":
        """Return what `save` wrote.

        Raises:
            RecipeError: The file is missing, too large or of another format.
        """
        path = Path(path)
        try:
            if path.stat().st_size > _LARGEST_BYTES:
                raise _unreadable(path, f"is larger than {_LARGEST_BYTES} bytes")
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise _unreadable(path, f"cannot be read: {' '.join(str(error).split())[:300]}") from error

    @classmethod
    def chosen(cls, choice: Choice, assets: Mapping[str, bytes]) -> "Protection":
        """Return what an option `protect` names; nothing is protected where it names nothing.

        Args:
            choice: "units", a file, or None.
            assets: Of the model, where analyse-units leaves its protection.

        Raises:
            RecipeError: There is no such protection, or it cannot be read.
        """
        if choice is None:
            return cls()
        if choice != "units":
            return cls.load(choice)
        try:
            return cls.model_validate_json(assets[PROTECTION_ASSET])
        except KeyError as error:
            raise RecipeError(
                "protect names units, and no step before this one found any",
                expected="a step analyse-units before this one, or the name of a file",
                why="Without it nothing says which places to keep.",
                fix="Put analyse-units into the recipe, or name the file that another run wrote.",
            ) from error
        except ValidationError as error:
            raise _unreadable(Path(PROTECTION_ASSET), "among the files of the model is damaged") from error


def _unreadable(path: Path, problem: str) -> RecipeError:
    return RecipeError(
        f"the protection `{path}` {problem}",
        expected="a JSON file that analyse-units or Protection.save wrote",
        why="Without it nothing says which places to keep.",
        fix="Check the path, or write the file again.",
    )
