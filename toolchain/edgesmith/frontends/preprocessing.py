"""From the files beside a `transformers` checkpoint to the preprocessing records that travel with the Model."""

import json
from pathlib import Path
from typing import Any, Literal

from edgesmith.errors import ModelError
from edgesmith_calibration.preprocessing import ImagePreprocessing, TextPreprocessing

TOKENIZER_FILE = "tokenizer.json"
_LONGEST_TEXT = 512
"""Texts are cut here unless the model or its tokenizer is shorter: calibration needs no more."""
_INTERPOLATIONS: dict[int, Literal["nearest", "bilinear", "bicubic", "lanczos"]] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one when there is no such file.

    Raises:
        ModelError: The file is not JSON, or not an object.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(data, dict):
        raise _broken(path, "it holds no object")
    return data


def text_preprocessing(
    directory: Path, config: Any, inputs: tuple[str, ...], *, next_token: bool
) -> tuple[TextPreprocessing | None, dict[str, bytes]]:
    """Return how text becomes `inputs`, and the tokenizer as an asset; nothing when there is no `tokenizer.json`.

    Args:
        directory: The checkpoint's directory.
        config: Its configuration, for the number of positions.
        inputs: Names of the graph's inputs.
        next_token: Whether the model predicts the next token.
    """
    tokenizer = directory / TOKENIZER_FILE
    if not tokenizer.is_file():
        return None, {}
    settings = read_json(directory / "tokenizer_config.json")
    lengths = [
        _LONGEST_TEXT,
        settings.get("model_max_length"),
        read_json(directory / "sentence_bert_config.json").get("max_seq_length"),
        _positions(config),
    ]
    longest = min(int(length) for length in lengths if isinstance(length, int | float) and length >= 1)
    padding = settings.get("pad_token")
    record = TextPreprocessing(
        tokenizer=TOKENIZER_FILE,
        max_length=longest,
        pad_to="longest",
        inputs=inputs,
        # Older configurations describe a token by an object.
        pad_token=str((padding.get("content") if isinstance(padding, dict) else padding) or ""),
        next_token=next_token,
    )
    return record, {TOKENIZER_FILE: tokenizer.read_bytes()}


def image_preprocessing(settings: dict[str, Any]) -> ImagePreprocessing | None:
    """Return the record for a `preprocessor_config.json`, or None when it resizes in a way the record cannot say."""
    size, crop = _sides(settings.get("size")), _sides(settings.get("crop_size"))
    if size is None or settings.get("do_resize") is False:
        return None
    cropped = crop if crop is not None and settings.get("do_center_crop", True) else size
    # "shortest_edge" keeps the aspect; height and width stretch the whole image to exactly that.
    keep_aspect = "shortest_edge" in settings["size"] if isinstance(settings["size"], dict) else cropped != size
    normalized = settings.get("do_normalize", True)
    mean, std = settings.get("image_mean"), settings.get("image_std")
    return ImagePreprocessing(
        resize=min(size),
        keep_aspect=keep_aspect or cropped != size,
        crop=cropped,
        scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
        mean=tuple(mean) if normalized and mean else (0.0, 0.0, 0.0),
        std=tuple(std) if normalized and std else (1.0, 1.0, 1.0),
        interpolation=_INTERPOLATIONS.get(int(settings.get("resample", 2)), "bilinear"),
    )


def _positions(config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    # RoBERTa and its kin count positions from behind the padding index.
    offset = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return positions - offset


def _sides(size: object) -> tuple[int, int] | None:
    """Return height and width from the forms that configurations use."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
    return None


def _broken(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"`{path}` cannot be read: {reason}.",
        expected="a JSON object",
        why="It says how data become the model's inputs.",
        fix="Download or save the model again.",
    )
