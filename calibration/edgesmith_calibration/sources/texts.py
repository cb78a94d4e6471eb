"""Texts from a table, JSON lines or a plain file, encoded one batch at a time."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.sources.base import Array, Batch
from edgesmith_calibration.sources.classes import class_indices
from edgesmith_calibration.sources.samples import (
    Indices,
    SampleSource,
    chunks,
    key_of_arrays,
    missing_file,
    require_samples,
)
from edgesmith_calibration.text_encoder import TextEncoder

SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
LABEL_COLUMNS = ("label", "labels", "category", "class", "target")
"""Columns taken for labels when none is named."""
_LARGEST_CELL = 16 << 20
"""Characters in one cell of a table. What is longer is more likely a missing quote."""


@dataclass(frozen=True, slots=True)
class TextColumns:
    """Which columns of a table are read. Plain text has no columns: each line that is not empty is a text."""

    text: str = "text"
    pair: str | None = None
    """Second sentence."""
    label: str | None = None
    """None: the first of `LABEL_COLUMNS` that the file has, if any."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the model's outputs, where labels are names."""


class TextSource(SampleSource):
    """One text, or pair of texts, per sample.

    Args:
        path: A .csv or .tsv file with a header line, a .jsonl file of objects, or a .txt file of lines. UTF-8.
        encoder: Turns texts into inputs.
        columns: Which columns to read.

    Raises:
        DataError: The file is missing, empty or damaged, or a column does not exist.
    """

    def __init__(self, path: Path, encoder: TextEncoder, columns: TextColumns | None = None) -> None:
        columns = columns or TextColumns()
        self.description = f"the texts in {path}"
        self.settings = encoder.settings
        self._encoder = encoder
        rows = list(_rows(path, columns.text))
        require_samples(len(rows), self.description)
        self._texts = _column(rows, columns.text, self.description)
        self._pairs = _column(rows, columns.pair, self.description) if columns.pair else None
        label = columns.label or next((name for name in LABEL_COLUMNS if name in rows[0]), None)
        names = _column(rows, label, self.description) if label else None
        self._labels = None if names is None else class_indices(names, columns.classes, self.description)
        self.has_labels = names is not None

    def __len__(self) -> int:
        return len(self._texts)

    def labels(self) -> Array | None:
        """Return the class indices, int64 [texts]."""
        return self._labels

    def sample_keys(self) -> Sequence[bytes]:
        """Return the hash of each text or pair."""
        pairs = self._pairs or [""] * len(self._texts)
        return [
            hashlib.sha256(f"{len(text)}:{text}{pair}".encode()).digest()
            for text, pair in zip(self._texts, pairs, strict=True)
        ]

    def read(self, indices: Indices, batch_size: int) -> Iterator[Batch]:
        """Encode and yield the texts at `indices`."""
        for chosen in chunks(indices, batch_size):
            pairs = None if self._pairs is None else [self._pairs[index] for index in chosen]
            inputs = self._encoder.encode([self._texts[index] for index in chosen], pairs)
            yield Batch(inputs, None if self._labels is None else self._labels[chosen])


class TokenWindowSource(SampleSource):
    """A text cut into windows for a model that predicts the next token. Labels are the tokens one position later.

    Windows follow each other without overlap; what is left at the end is dropped. No special tokens are added.

    Args:
        path: A file as `TextSource` reads it. Of a table, the texts are joined with line ends.
        encoder: Turns text into tokens; its `max_length` is the length of a window.
        column: Column of the text.

    Raises:
        DataError: The file is missing or damaged, or shorter than one window.
    """

    has_labels = True
    """The text itself gives the labels."""

    def __init__(self, path: Path, encoder: TextEncoder, column: str = "text") -> None:
        self.description = f"windows of the text in {path}"
        self.settings = encoder.settings
        self._encoder = encoder
        if path.suffix.lower() == ".txt":
            lines: Iterator[str] = iter(io.StringIO(_read_text(path)))
        else:
            lines = (f"{text}\n" for text in _column(list(_rows(path, column)), column, self.description))
        self._codes = encoder.tokens(lines)
        self._width = encoder.preprocessing.max_length
        self._length = max(0, self._codes.size - 1) // self._width
        if self._length == 0:
            raise DataError(
                f"{self.description} has {self._codes.size} tokens",
                expected=f"at least {self._width + 1}: one window and the token that follows",
                why="the text is cut into windows of the model's length",
                fix="use a longer text, or a smaller max_length in the text preprocessing",
            )

    def __len__(self) -> int:
        return self._length

    def labels(self) -> Array:
        """Return the next tokens, int64 [windows, length]."""
        return self._codes[1 : self._length * self._width + 1].reshape(self._length, self._width)

    def sample_keys(self) -> Sequence[bytes]:
        """Return the hash of each window."""
        return [key_of_arrays({"input_ids": window}) for window in self._windows()]

    def read(self, indices: Indices, batch_size: int) -> Iterator[Batch]:
        """Yield the windows at `indices`."""
        windows, labels = self._windows(), self.labels()
        for chosen in chunks(indices, batch_size):
            yield Batch(self._encoder.window_inputs(windows[chosen]), labels[chosen])

    def _windows(self) -> Array:
        return self._codes[: self._length * self._width].reshape(self._length, self._width)


def _rows(path: Path, text: str) -> Iterator[Mapping[str, str]]:
    """Yield the rows of a file as mappings of column to text."""
    content = _read_text(path)
    suffix = path.suffix.lower()
    if suffix == ".txt":
        yield from ({text: line} for line in content.split("\n") if line.strip())
    elif suffix == ".jsonl":
        yield from _json_rows(content, path)
    elif suffix in (".csv", ".tsv"):
        yield from _table_rows(content, "," if suffix == ".csv" else "\t", path)
    else:
        raise DataError(
            f"{path} is not a text file that can be read",
            expected=f"a name that ends in {', '.join(SUFFIXES)}",
            why="the ending tells the format",
            fix="rename or convert the file",
        )


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise missing_file(path, f"a file that ends in {', '.join(SUFFIXES)}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            expected="text in UTF-8",
            why="a tokenizer reads Unicode text",
            fix="convert the file to UTF-8",
        ) from error


def _table_rows(content: str, delimiter: Literal[",", "\t"], path: Path) -> Iterator[Mapping[str, str]]:
    reader = csv.DictReader(io.StringIO(content), delimiter=delimiter, strict=True)
    # Python's own limit is that of all readers of the process, so it is put back.
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, _LARGEST_CELL))
    try:
        for row in reader:
            # DictReader gathers surplus cells under None, and fills missing ones with None.
            if None in row or None in row.values():
                raise csv.Error(f"line {reader.line_num} has not as many cells as the header")
            yield row
    except csv.Error as error:
        raise DataError(
            f"{path} is not a valid table: {error}",
            expected=f"a header line, and rows with as many cells, separated by {delimiter!r}",
            why="texts and labels are found by the column's name",
            fix='quote cells that hold separators or line ends ("..."), or use a .jsonl file',
        ) from error
    finally:
        csv.field_size_limit(limit)


def _json_rows(content: str, path: Path) -> Iterator[Mapping[str, str]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise _not_an_object(path, number, str(error)) from error
        if not isinstance(row, dict):
            raise _not_an_object(path, number, f"it is a {type(row).__name__}")
        yield {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}


def _not_an_object(path: Path, number: int, reason: str) -> DataError:
    return DataError(
        f"line {number} of {path} is not a JSON object: {reason}",
        expected='one object per line, such as {"text": "...", "label": 0}',
        why="texts and labels are found by name",
        fix="correct the line",
    )


def _column(rows: Sequence[Mapping[str, str]], name: str, description: str) -> list[str]:
    for number, row in enumerate(rows):
        if name not in row:
            raise DataError(
                f"sample {number} of {description} has no column '{name}'",
                expected=f"one of its columns: {', '.join(row)}",
                why="texts and labels are found by the column's name",
                fix="name the column in a YAML data description: text_column, pair_column or label_column",
            )
    return [row[name] for row in rows]
