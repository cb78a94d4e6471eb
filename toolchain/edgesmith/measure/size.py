"""Size of a stage: the files that a device has to hold."""

from dataclasses import dataclass
from pathlib import Path

from edgesmith.errors import MeasurementError


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of one stage."""

    file_bytes: int
    """The model file and, of an ONNX file, the external data files that it names."""


def measure_size(entry: Path) -> Size:
    """Return the size of the model file `entry` with its external data. Weights are not read.

    Args:
        entry: An `.onnx` file, or any other file of a target, which is taken to be complete by itself.

    Raises:
        MeasurementError: The file is missing.
        ModelError: The ONNX file is damaged, or a data file of it is missing.
    """
    if not entry.is_file():
        raise MeasurementError(
            f"{entry} is missing, so it has no size",
            expected="the model file that the target built",
            why="the size would go unreported",
            fix="restore the file, or compile again",
        )
    files = [entry]
    if entry.suffix == ".onnx":
        from edgesmith.serialization import external_files

        files.extend(external_files(entry))
    return Size(file_bytes=sum(file.stat().st_size for file in files))
