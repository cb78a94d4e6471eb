"""Applies `TextPreprocessing`: text to token arrays, with the tokenizer that travels with the model."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.preprocessing import TextPreprocessing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tokens = NDArray[np.int64]

_KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>", "</s>", "<|endoftext|>", "<|im_end|>")
_CHARACTERS_PER_PIECE = 1 << 16


class TextEncoder:
    """Turns text into the inputs of a graph.

    Args:
        preprocessing: What to do.
        assets: File name to content; must hold the tokenizer.

    Raises:
        DataError: The tokenizer is missing or damaged, or an input is not one that a tokenizer can fill.
    """

    def __init__(self, preprocessing: TextPreprocessing, assets: Mapping[str, bytes]) -> None:
        unknown = [name for name in preprocessing.inputs if name not in _KNOWN_INPUTS]
        if unknown:
            raise DataError(
                f"a tokenizer cannot fill the input '{unknown[0]}'",
                expected=f"inputs among {', '.join(_KNOWN_INPUTS)}",
                why="every input of the graph needs a value",
                fix="correct the inputs of the text preprocessing, or pass arrays in an .npz file",
            )
        self.preprocessing = preprocessing
        self._plain = _load(preprocessing.tokenizer, assets)
        self._plain.no_padding()
        self._plain.no_truncation()
        self._tokenizer = _load(preprocessing.tokenizer, assets)
        _configure(self._tokenizer, preprocessing)
        self.settings = preprocessing.model_dump_json() + hashlib.sha256(assets[preprocessing.tokenizer]).hexdigest()
        """What decides the tokens of a text, to be hashed."""

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> dict[str, Tokens]:
        """Return one int64 array [texts, length] per input, cut and padded as the preprocessing says.

        Args:
            texts: First or only sentences.
            pairs: Second sentences, as many as `texts`.
        """
        batch: Any = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encodings = self._tokenizer.encode_batch(batch)
        arrays = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        found = {name: np.array(rows, np.int64) for name, rows in arrays.items()}
        found["position_ids"] = np.maximum(found["attention_mask"].cumsum(axis=1) - 1, 0)
        return {name: found[name] for name in self.preprocessing.inputs}

    def tokens(self, lines: Iterable[str]) -> Tokens:
        """Return the codes of a whole text, int64 [tokens], without special tokens, uncut.

        Text is encoded in pieces of some 64 Ki characters that end at line ends.
        """
        codes = [np.array(self._plain.encode(piece, add_special_tokens=False).ids, np.int64) for piece in _join(lines)]
        return np.concatenate(codes) if codes else np.zeros(0, np.int64)

    def window_inputs(self, codes: Tokens) -> dict[str, Tokens]:
        """Return the inputs for windows of codes [windows, length] that are full of text."""
        found = {
            "input_ids": codes,
            "attention_mask": np.ones_like(codes),
            "token_type_ids": np.zeros_like(codes),
            "position_ids": np.broadcast_to(np.arange(codes.shape[1]), codes.shape).copy(),
        }
        return {name: found[name] for name in self.preprocessing.inputs}


def _load(name: str, assets: Mapping[str, bytes]) -> "Tokenizer":
    from tokenizers import Tokenizer

    if name not in assets:
        raise DataError(
            f"the model has no tokenizer '{name}'",
            expected=f"a Hugging Face tokenizer.json among its assets, which are {', '.join(sorted(assets)) or 'none'}",
            why="text must become numbers exactly as it did when the model was trained",
            fix="put tokenizer.json beside the model, or pass token arrays in an .npz file",
        )
    try:
        return Tokenizer.from_buffer(assets[name])
    # The tokenizers package raises nothing more specific.
    except Exception as error:
        raise DataError(
            f"the tokenizer '{name}' cannot be read: {error}",
            expected="a Hugging Face tokenizer.json",
            why="text must become numbers exactly as it did when the model was trained",
            fix="save the tokenizer again, or pass token arrays in an .npz file",
        ) from error


def _configure(tokenizer: "Tokenizer", preprocessing: TextPreprocessing) -> None:
    padding = tokenizer.padding or {}
    token = preprocessing.pad_token or padding.get("pad_token", "")
    candidates = [token] if token else _PAD_TOKENS
    code = next((found for found in map(tokenizer.token_to_id, candidates) if found is not None), None)
    if code is None and preprocessing.pad_token:
        raise DataError(
            f"the tokenizer does not know the padding token '{token}'",
            expected="a token of its vocabulary",
            why="short texts are filled with this token",
            fix="correct pad_token in the text preprocessing",
        )
    tokenizer.enable_truncation(preprocessing.max_length)
    tokenizer.enable_padding(
        direction=padding.get("direction", "right"),
        pad_id=code or 0,
        pad_type_id=padding.get("pad_type_id", 0),
        pad_token=token or "",
        length=preprocessing.max_length if preprocessing.pad_to == "max_length" else None,
    )


def _join(lines: Iterable[str]) -> Iterator[str]:
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= _CHARACTERS_PER_PIECE:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)
