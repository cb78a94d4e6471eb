"""A folder of images, decoded one batch at a time."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.image_encoder import encode_image
from edgesmith_calibration.preprocessing import ImagePreprocessing
from edgesmith_calibration.sources.base import Array, Batch
from edgesmith_calibration.sources.classes import class_indices
from edgesmith_calibration.sources.samples import (
    Indices,
    SampleSource,
    chunks,
    missing_file,
    require_samples,
)

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolderSource(SampleSource):
    """The images in a folder and its subfolders, in the order of their paths. Hidden files are left out.

    Labels come from `pattern` where one is given, else from the names of the direct subfolders where there are any,
    else there are none. Names that are all integers are the class indices; others are numbered by `classes`.

    Args:
        path: The folder.
        preprocessing: How an image becomes an input.
        pattern: Regular expression found in the file name; its first group, or else the whole match, is the label.
        classes: Class names in the order of the model's outputs.

    Raises:
        DataError: The folder is missing or holds no image, an image has no label where others have one, or labels
            are names without `classes` to number them.
    """

    def __init__(
        self, path: Path, preprocessing: ImagePreprocessing, pattern: str = "", classes: Sequence[str] = ()
    ) -> None:
        if not path.is_dir():
            raise missing_file(path, "a folder of images")
        self.description = f"the images in {path}"
        self.settings = preprocessing.model_dump_json()
        self._path = path
        self._preprocessing = preprocessing
        self._files = sorted(
            (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and _is_visible(file, path)),
            key=lambda file: file.relative_to(path).as_posix(),
        )
        require_samples(len(self._files), self.description)
        names = self._names_by_pattern(pattern) if pattern else self._names_by_folder()
        self._labels = None if names is None else class_indices(names, classes, self.description)
        self.has_labels = names is not None

    def __len__(self) -> int:
        return len(self._files)

    def labels(self) -> Array | None:
        """Return the class indices, int64 [images]."""
        return self._labels

    def sample_keys(self) -> Sequence[bytes]:
        """Return the hash of each file."""
        return self._keys

    def read(self, indices: Indices, batch_size: int) -> Iterator[Batch]:
        """Decode and yield the images at `indices`."""
        for chosen in chunks(indices, batch_size):
            images = [encode_image(self._files[index], self._preprocessing) for index in chosen]
            labels = None if self._labels is None else self._labels[chosen]
            yield Batch({self._preprocessing.input: np.stack(images)}, labels)

    @cached_property
    def _keys(self) -> list[bytes]:
        keys = []
        for path in self._files:
            with path.open("rb") as file:
                keys.append(hashlib.file_digest(file, "sha256").digest())
        return keys

    def _names_by_folder(self) -> list[str] | None:
        parents = [file.relative_to(self._path).parts[:-1] for file in self._files]
        if not any(parents):
            return None
        if not all(parents):
            raise DataError(
                f"some images lie in {self._path} itself and some in its subfolders",
                expected="one subfolder per class and no image beside them, or no subfolders at all",
                why="the subfolder is the label of an image",
                fix="move the images into class folders, or give a pattern for the label in the file name",
            )
        return [parts[0] for parts in parents]

    def _names_by_pattern(self, pattern: str) -> list[str]:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise DataError(
                f"'{pattern}' is not a regular expression: {error}",
                expected=r"a pattern such as '^\d+'",
                why="the label of an image is what the pattern finds in the file name",
                fix="correct the pattern",
            ) from error
        found = [expression.search(file.name) for file in self._files]
        for file, match in zip(self._files, found, strict=True):
            if match is None:
                raise DataError(
                    f"'{pattern}' finds no label in the file name {file.name}",
                    expected="a match in every file name",
                    why="an image without a label cannot be scored",
                    fix="correct the pattern, or move the other files away",
                )
        return [match.group(1 if expression.groups else 0) or "" for match in found if match]


def _is_visible(file: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(root).parts) and file.is_file()
