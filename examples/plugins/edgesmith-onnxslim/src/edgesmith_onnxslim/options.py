"""What a recipe may set, under names that say what it does."""

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Options of slim-graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fold_constants: bool = Field(default=True, description="Compute once what depends on constants alone.")
    fuse: bool = Field(default=True, description="Join nodes, such as a convolution and the sum behind it.")
    merge_equal: bool = Field(
        default=True, description="Compute once what several nodes compute, and tie equal weights."
    )
    largest_folded_kib: int = Field(
        default=1024, ge=1, description="Largest constant that folding may add. Unfolded, it is computed in every run."
    )
