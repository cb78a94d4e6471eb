"""Labelled photos, cropped and normalized the way that networks trained on ImageNet expect."""

import os
from pathlib import Path

import numpy as np

from benchmarks.models.case import MissingDataError

VARIABLE = "EDGESMITH_PHOTOS"
DEFAULT = Path("../shared/data/imagenet_photos")
HELP = (
    f"Set {VARIABLE} to a folder of photos whose file names start with their ImageNet class index, such as "
    "0207_retriever.jpg; at least 250 of them."
)


def read_photos() -> tuple[np.ndarray, np.ndarray]:
    """Return photos float32 [count, 3, 224, 224] and their class indices."""
    from PIL import Image

    folder = Path(os.environ.get(VARIABLE, DEFAULT))
    files = sorted(folder.glob("[0-9]*_*.jp*g")) if folder.is_dir() else []
    if len(files) < 250:
        raise MissingDataError(f"{folder} holds {len(files)} photos. {HELP}")
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    arrays = []
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
        arrays.append(((pixels - mean) / deviation).transpose(2, 0, 1))
    return np.stack(arrays), np.array([int(file.name.split("_")[0]) for file in files])


def split_photos(calibration: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return `calibration` photos spread evenly over the folder, and all others to evaluate on."""
    photos, labels = read_photos()
    chosen = np.zeros(len(photos), bool)
    chosen[np.arange(calibration) * len(photos) // calibration] = True
    return {"calibration": (photos[chosen], labels[chosen]), "evaluation": (photos[~chosen], labels[~chosen])}
