"""Applies `ImagePreprocessing`: an image file to the array that a graph takes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.preprocessing import ImagePreprocessing

if TYPE_CHECKING:
    from PIL import Image

_MODES = {1: "L", 3: "RGB"}


def encode_image(path: Path, preprocessing: ImagePreprocessing) -> NDArray[np.float32]:
    """Return an image as float32 [channels, height, width], or [height, width, channels] for NHWC.

    Args:
        path: A file that Pillow can read.
        preprocessing: What to do. One mean makes the image grey, three keep its colours.

    Raises:
        DataError: The file is not an image, is damaged or too large, or the preprocessing has a wrong number of means.
    """
    mean = np.array(preprocessing.mean, np.float32)
    std = np.array(preprocessing.std, np.float32)
    if mean.size not in _MODES or mean.size != std.size or not std.all():
        raise DataError(
            f"image preprocessing with {mean.size} means and {std.size} standard deviations {preprocessing.std}",
            expected="1 or 3 of each, one per channel, and no standard deviation of 0",
            why="every channel is normalised by its own mean and standard deviation",
            fix="correct mean and std in the image preprocessing",
        )
    image = _resized(_open(path, _MODES[mean.size]), preprocessing)
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, mean.size)
    pixels = (pixels * np.float32(preprocessing.scale) - mean) / std
    return pixels if preprocessing.layout == "NHWC" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _open(path: Path, mode: str) -> "Image.Image":
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert(mode)
    # Pillow's decoders raise SyntaxError, ValueError and others for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"the image {path} cannot be decoded: {error}",
            expected="a whole image file of a format that Pillow reads, of at most 178 million pixels",
            why="every image of the folder is used",
            fix="remove or replace this file",
        ) from error


def _resized(image: "Image.Image", preprocessing: ImagePreprocessing) -> "Image.Image":
    from PIL import Image

    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    height, width = preprocessing.crop
    if not preprocessing.keep_aspect:
        return image.resize((width, height), resampling)
    short = min(image.size)
    size = tuple(max(1, int(preprocessing.resize * side / short)) for side in image.size)
    resized = image.resize((size[0], size[1]), resampling)
    # An odd margin is halved downwards, as in transformers; torchvision takes the next even number.
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    # Where the crop reaches beyond the image, Pillow fills with black.
    return resized.crop((left, top, left + width, top + height))
