"""Size of a stage: its files on disk, its weights, and what a compressed download would take."""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.errors import MeasurementError

if TYPE_CHECKING:
    import onnx_ir as ir

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of one stage."""

    file_bytes: int
    """The model file and the external data files that it names."""
    weight_bytes: int
    """Weights, those of equal content counted once."""
    compressed_bytes: int | None = None
    """The same files after DEFLATE, as in a wheel, an APK or a zip archive; None when not asked for."""


def measure_size(entry: Path, *, compressed: bool = False) -> Size:
    """Return the size of the ONNX file `entry` with its external data.

    Raises:
        MeasurementError: A file is missing.
    """
    import onnx_ir as ir

    _require(entry, entry)
    files = [entry]
    weights: dict[tuple[str, bytes], int] = {}
    for tensor in _tensors(ir.load(entry)):
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) not in files:
            files.append(Path(tensor.path))
            _require(files[-1], entry)
        key = (f"{tensor.dtype}{tensor.shape}", hashlib.sha256(tensor.tobytes()).digest())
        weights[key] = tensor.nbytes
    return Size(
        file_bytes=sum(file.stat().st_size for file in files),
        weight_bytes=sum(weights.values()),
        compressed_bytes=sum(_compressed_bytes(file) for file in files) if compressed else None,
    )


def _require(file: Path, entry: Path) -> None:
    if not file.is_file():
        raise MeasurementError(
            f"{file} is missing, so {entry} has no size",
            expected="the model file and every external data file that it names",
            why="a part of the size would go unreported",
            fix="restore the file, or compile again",
        )


def _tensors(model: "ir.Model") -> "Iterator[ir.TensorProtocol]":
    """Yield every weight of the graph, its subgraphs and its functions."""
    import onnx_ir as ir

    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
                yield attribute.as_tensor()


def _compressed_bytes(file: Path) -> int:
    compressor = zlib.compressobj(6)
    size = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            size += len(compressor.compress(chunk))
    return size + len(compressor.flush())
