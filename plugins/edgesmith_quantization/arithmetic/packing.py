"""Packs codes of 2 or 4 bits into bytes as ONNX stores them: in row-major order, the first code in the lowest bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[Any]
Bytes = NDArray[np.uint8]

_WORDS: dict[int, np.dtype[Any]] = {2: np.dtype("<u4"), 4: np.dtype("<u2")}
"""Unsigned integers that hold the codes of one byte before they are packed, by bits of a code."""
_CODES_PER_STEP = 1 << 18


def pack_codes(codes: Codes, bits: int) -> Bytes:
    """Return the bytes of `codes`, one-dimensional; the last byte is filled with zeros (ONNX IR, external data).

    Args:
        codes: int8 or uint8 of any shape, each within the range of its bits.
        bits: Bits of a code: 2, 4, or 8, which are bytes already.
    """
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    if bits == 8:
        return flat
    per_byte = 8 // bits
    packed = np.empty(-(-flat.size // per_byte), np.uint8)
    for start in range(0, flat.size, _CODES_PER_STEP):
        piece = flat[start : start + _CODES_PER_STEP]
        rest = -piece.size % per_byte
        words = (np.pad(piece, (0, rest)) if rest else piece).view(_WORDS[bits])
        first = start // per_byte
        packed[first : first + words.size] = _joined(words, bits)
    return packed


def _joined(words: Codes, bits: int) -> Codes:
    """Return each word's codes, which stand at the bottom of its bytes, moved together into the lowest byte."""
    kind = words.dtype.type
    mask = (1 << bits) - 1
    joined: Codes = words & kind(mask)
    for position in range(1, 8 // bits):
        joined |= (words >> kind(position * (8 - bits))) & kind(mask << position * bits)
    return joined
