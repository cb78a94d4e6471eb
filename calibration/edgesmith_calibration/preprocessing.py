"""How raw text and images become a graph's inputs. The records travel with the model as JSON."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class TextPreprocessing(BaseModel):
    """Tokenize text with a Hugging Face `tokenizer.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["text"] = "text"
    tokenizer: str = Field(default="tokenizer.json", description="Asset file name of the tokenizer.")
    max_length: int = Field(default=128, ge=1, description="Texts are cut to this many tokens.")
    pad_to: Literal["max_length", "longest"] = Field(
        default="max_length", description="Pad every text to max_length, or each batch to its longest text."
    )
    inputs: tuple[str, ...] = Field(
        default=("input_ids", "attention_mask", "token_type_ids"),
        description="Graph inputs to fill; names the tokenizer does not know are an error.",
    )
    pad_token: str = Field(
        default="", description="Token that fills short texts. Empty: the tokenizer's own, or the code 0."
    )
    next_token: bool = Field(
        default=False,
        description="The model predicts the next token: texts are cut into windows of max_length without padding, "
        "and the labels are the tokens that follow.",
    )


class ImagePreprocessing(BaseModel):
    """Resize, crop, scale and normalise an RGB image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["image"] = "image"
    input: str = Field(default="pixel_values", description="Graph input to fill.")
    resize: int = Field(default=256, ge=1, description="Short side in pixels after resizing.")
    keep_aspect: bool = Field(
        default=True, description="Off: stretch the whole image to the size of `crop`, and leave out `resize`."
    )
    crop: tuple[int, int] = Field(default=(224, 224), description="Height and width of the centre crop in pixels.")
    scale: float = Field(default=1 / 255, description="Factor applied to the 0..255 pixel values.")
    mean: tuple[float, ...] = Field(default=(0.485, 0.456, 0.406), description="Subtracted per channel after scaling.")
    std: tuple[float, ...] = Field(default=(0.229, 0.224, 0.225), description="Divided by per channel.")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    layout: Literal["NCHW", "NHWC"] = "NCHW"


Preprocessing = Annotated[TextPreprocessing | ImagePreprocessing, Field(discriminator="kind")]
