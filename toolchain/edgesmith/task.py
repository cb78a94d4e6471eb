"""What a model is for: its preprocessing, labels and metric. Travels with the model from source to artifact."""

from pydantic import BaseModel, ConfigDict, Field

from edgesmith_calibration.preprocessing import Preprocessing


class Task(BaseModel):
    """The use a graph is put to: kind, metric, names of classes, and how raw text or images become inputs.

    Methods never branch on `kind`; it selects default metrics and labels report rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(
        default="generic",
        description="text-classification, token-classification, image-classification, causal-lm, masked-lm, "
        "feature-extraction or generic.",
    )
    metric: str = Field(default="", description="Name of a registered metric; empty means: compare with the source.")
    labels: tuple[str, ...] = Field(default=(), description="Class names in the order of the output channels.")
    preprocessing: Preprocessing | None = Field(
        default=None, description="How raw text or images become the graph's inputs. Files it names are in the assets."
    )
