"""How models are timed on a device, and how an artifact is validated there."""

from collections.abc import Sequence
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesmith.errors import RecipeError

PlanT = TypeVar("PlanT", bound="DevicePlan")

_LARGEST_SECONDS = 86_400


class DevicePlan(BaseModel):
    """How models run on a device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: Literal["", "onnxruntime", "tensorrt", "tensorrt_rtx", "trtexec"] = Field(
        default="", description="Python module or program to run the model in; empty takes the target's runtime."
    )
    directory: str = Field(default="", description="Directory on the device to work in; empty takes /tmp or its like.")
    python: str = Field(default="", description="Python interpreter on the device; empty takes python3.")
    threads: int = Field(
        default=0, ge=0, le=1024, description="Threads of ONNX Runtime; 0 takes the device's usable cores."
    )
    cool_below: float = Field(
        default=0.0, ge=0, description="Wait until the device is below this temperature in Celsius."
    )
    timeout: float = Field(
        default=1800.0, ge=1, le=_LARGEST_SECONDS, description="Seconds for each long step on the device."
    )
    cuda_graphs: bool = Field(default=True, description="Time a run as one launch of a CUDA graph where that works.")
    reconnects: int = Field(default=4, ge=0, le=20, description="How often a lost connection is made again.")


class ValidationPlan(DevicePlan):
    """Everything that can be set for a validation."""

    target: str = Field(
        default="", description="Target or profile file whose device this is; empty takes the artifact's."
    )
    samples: int = Field(default=64, ge=1, description="Most evaluation samples that are run, classes in equal shares.")
    batch_size: int = Field(default=1, ge=1, description="Samples per run, where the graph leaves it open.")
    seconds: float = Field(default=5.0, ge=0, le=_LARGEST_SECONDS, description="How long to time, after the warm-up.")
    warmup_runs: int = Field(default=20, ge=1, description="Untimed runs before.")
    fewest_runs: int = Field(default=20, ge=1, description="Timed runs at least.")
    most_runs: int = Field(default=10_000, ge=1, description="Timed runs at most.")
    lock_clocks: bool = Field(default=False, description="Lock the clocks with jetson_clocks while it is timed.")
    taps: int = Field(default=0, ge=0, le=256, description="Values inside the graph to compare; ONNX Runtime only.")
    loadgen: Literal["", "SingleStream", "MultiStream", "Offline", "Server"] = Field(
        default="", description="Scenario of MLPerf's load generator to run too; the same as --loadgen."
    )
    target_qps: float = Field(
        default=0.0, ge=0, description="Rate of queries for the scenario Server; 0 takes what single runs allow."
    )
    resume: str = Field(default="", description="Directory on the device of a try that broke, to go on in.")
    keep: bool = Field(default=False, description="Leave the working directory on the device.")


def parse_plan(kind: type[PlanT], settings: Sequence[str], **given: object) -> PlanT:
    """Return the plan that texts such as "threads=2" describe.

    Args:
        kind: Which settings there are.
        settings: The texts.
        given: What is set already.

    Raises:
        RecipeError: One is unknown, or its value is not valid.
    """
    try:
        return kind.model_validate({**given, **dict(setting.partition("=")[::2] for setting in settings)})
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            f"--set {'.'.join(map(str, first['loc']))}: {first['msg']}.",
            expected=f"one of {', '.join(kind.model_fields)}, with a value of its type",
            why="A setting that is not understood would be taken for one that holds.",
            fix="Write --set NAME=VALUE; docs/targets/validation.md explains the names.",
        ) from error
