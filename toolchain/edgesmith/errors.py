"""The error family. Each member says what failed, what was expected, why it matters and what to do next."""

from enum import StrEnum

from edgesmith_calibration.errors import DataError, EdgesmithError

__all__ = [
    "Condition",
    "DataError",
    "DeviceError",
    "EdgesmithError",
    "MeasurementError",
    "ModelError",
    "OutputError",
    "PluginError",
    "RecipeError",
    "StepError",
    "TargetError",
    "UnsupportedOperatorError",
]


class ModelError(EdgesmithError):
    """A model file or graph cannot be read, is not valid, or is not what its metadata says."""


class UnsupportedOperatorError(ModelError):
    """A graph holds an operator that this part of Edgesmith does not implement; the message names it."""


class RecipeError(EdgesmithError):
    """A recipe, an option or a data description is not valid."""


class PluginError(EdgesmithError):
    """A plugin is broken, missing, too old or too new, or two plugins claim one name."""


class Condition(StrEnum):
    """What the host requires of a step."""

    NO_CRASH = "no crash"
    INPUT_UNTOUCHED = "input untouched"
    NEW_MODEL = "a new model"
    SAME_INTERFACE = "same inputs and outputs"
    VALID = "a valid graph"
    RUNS = "runs in ONNX Runtime"
    FINITE = "finite outputs"
    GUARANTEE = "declared guarantee"


class StepError(EdgesmithError):
    """A method failed, or broke a promise that the host checks. The model before the step is intact."""

    condition: Condition | None = None
    """What was broken, where the host knows it."""

    def broke(self, condition: Condition) -> "StepError":
        """Return this error with the condition that was broken."""
        self.condition = condition
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_step, (type(self), self.what, self.expected, self.why, self.fix, self.condition))


class TargetError(EdgesmithError):
    """A target cannot take this graph."""


class MeasurementError(EdgesmithError):
    """A measurement could not be made, so there is no number to report."""


class DeviceError(MeasurementError):
    """A device could not be reached, lacks something, or did not finish what it was asked to do."""


class ConnectionLostError(DeviceError):
    """The way to a device broke; what was asked for may be asked again once it is back."""


class RejectedModelError(DeviceError):
    """A model does not build or run on a device that is there and would take another one."""


class OutputError(EdgesmithError):
    """A result could not be written. Whatever stood at the destination before is still there."""


def _rebuild_step(
    kind: type[StepError], what: str, expected: str, why: str, fix: str, condition: Condition | None
) -> StepError:
    error = kind(what, expected=expected, why=why, fix=fix)
    error.condition = condition
    return error
