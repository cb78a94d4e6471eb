"""The tools that are compared: ours and its peers, each with its best honest setting for a kind of network.

One module per tool, with a function `quantize(job)` from a float ONNX file and calibration arrays to a quantized ONNX
file. Peers that need packages of their own run in a virtual environment of their own, `build/bench/peers`.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ENVIRONMENT = Path("build/bench/peers")
TEXT, PHOTOS, FEATURES, LANGUAGE = ("minilm_r8", "minilm"), ("mobilenet", "mobilenet_200"), ("vit_s14",), ("smollm2",)
TRANSFORMERS = (*TEXT, *FEATURES, *LANGUAGE)
ALL = (*TRANSFORMERS, *PHOTOS)


class MissingPeerError(Exception):
    """A peer is not installed; the message says how to install it."""


@dataclass(frozen=True)
class Job:
    """One quantization: what a tool gets."""

    model: Path
    data: Mapping[str, np.ndarray]
    """Calibration arrays, one per graph input."""
    out: Path
    settings: Mapping[str, Any]

    def batches(self) -> list[dict[str, np.ndarray]]:
        """Return the calibration data sample by sample, which takes every tool least memory."""
        count = len(next(iter(self.data.values())))
        return [{name: array[i : i + 1] for name, array in self.data.items()} for i in range(count)]


@dataclass(frozen=True)
class Tool:
    """One row of the comparison: a tool with settings, the cases it is meant for, and the format that it writes."""

    name: str
    module: str
    format: str
    cases: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    own_environment: bool = False

    @property
    def python(self) -> Path:
        """The interpreter that it runs in.

        Raises:
            MissingPeerError: Its environment was not made.
        """
        if not self.own_environment:
            return Path(sys.executable)
        python = ENVIRONMENT / "bin" / "python"
        if not python.exists():
            raise MissingPeerError("not installed; run: make peers")
        return python


def _ours(name: str, form: str, cases: tuple[str, ...], *steps: tuple[str, Mapping[str, Any]]) -> Tool:
    listed = [{"method": method, "options": dict(options)} for method, options in steps]
    return Tool(f"edgesmith {name}", "edgesmith", form, cases, {"steps": listed})


def _runtime(name: str, form: str, cases: tuple[str, ...], **settings: Any) -> Tool:
    return Tool(f"onnxruntime {name}", "onnxruntime", form, cases, settings)


def _peer(name: str, module: str, cases: tuple[str, ...], **settings: Any) -> Tool:
    return Tool(name, module, "int8", cases, settings, own_environment=True)


_PRODUCTS = ["MatMul", "Gemm"]
"""What ONNX Runtime's static tool quantizes in text and vision transformers: more is slower and less accurate."""

_WIDEST = [f"node_linear_{6 + 7 * block}" for block in range(30)]
"""The second product of each MLP of SmolLM2-135M."""

TOOLS = (
    _ours("int8 static", "int8", ALL, ("quantize-int8", {"samples": 256})),
    _ours("int8 dynamic", "int8", TRANSFORMERS, ("quantize-int8", {"mode": "dynamic"})),
    _ours("int8 static, no outliers", "int8", TRANSFORMERS, ("quantize-int8", {"samples": 256, "outlier_channels": 0})),
    _ours(
        "int8 dynamic, no outliers", "int8", TRANSFORMERS, ("quantize-int8", {"mode": "dynamic", "outlier_channels": 0})
    ),
    _ours(
        "int8 weights, row by row",
        "int8",
        TRANSFORMERS,
        ("quantize-weights", {"bits": 8, "block_size": None, "rounding": "nearest"}),
    ),
    _ours(
        "int8 mixed",
        "int8",
        LANGUAGE,
        ("quantize-weights", {"bits": 8, "block_size": None, "rounding": "nearest", "only": _WIDEST}),
        ("quantize-int8", {"mode": "dynamic"}),
    ),
    _ours("fp8", "fp8", (*TEXT, "mobilenet", *FEATURES), ("quantize-fp8", {})),
    _ours("int4", "int4", TRANSFORMERS, ("quantize-weights", {"bits": 4})),
    _ours("int4 second-order", "int4", TRANSFORMERS, ("quantize-weights", {"bits": 4, "rounding": "second-order"})),
    _ours("int2", "int2", TRANSFORMERS, ("quantize-weights", {"bits": 2, "block_size": 16})),
    _ours(
        "int2 second-order",
        "int2",
        TRANSFORMERS,
        ("quantize-weights", {"bits": 2, "block_size": 16, "rounding": "second-order", "table_bits": 4}),
    ),
    _ours("int2 split", "int2", (*TEXT, *PHOTOS), ("quantize-split", {"bits": 2})),
    _runtime("int8 dynamic", "int8", TRANSFORMERS, mode="dynamic"),
    _runtime("int8 static min-max", "int8", TRANSFORMERS, mode="static", calibrate="MinMax", operators=_PRODUCTS),
    _runtime(
        "int8 static percentile", "int8", (*TEXT, *FEATURES), mode="static", calibrate="Percentile", operators=_PRODUCTS
    ),
    _runtime("int8 static min-max", "int8", PHOTOS, mode="static", calibrate="MinMax"),
    _runtime("int8 static percentile", "int8", PHOTOS, mode="static", calibrate="Percentile"),
    _runtime("int4 nearest, block 32", "int4", TRANSFORMERS, mode="blocks", algorithm="rtn", block_size=32),
    _runtime("int4 hqq, block 32", "int4", LANGUAGE, mode="blocks", algorithm="hqq", block_size=32),
    _peer("quark percentile", "quark", PHOTOS, calibrate="Percentile", transformer=False),
    _peer("quark min-max", "quark", TRANSFORMERS, calibrate="MinMax", transformer=True),
    _peer("nncf", "nncf", ALL, transformer=False),
    _peer("nncf transformer", "nncf", TRANSFORMERS, transformer=True),
    _peer("olive static", "olive", ALL),
)


def tools_for(case: str) -> tuple[Tool, ...]:
    """Return the tools that are meant for a case."""
    return tuple(tool for tool in TOOLS if case in tool.cases)
