"""The data of a run: what a user named, opened for one model, with calibration and evaluation kept apart."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgesmith_calibration.sources import Batch, DataSource
from edgesmith_calibration.spec import DataSpec, SourceSpec, load_data_spec, open_source

from edgesmith.errors import DataError
from edgesmith.execution.sample import sample_inputs
from edgesmith.model import Model

_RANDOM_BATCHES = 8


@dataclass(frozen=True, slots=True)
class RunData:
    """Opened data. Nothing is ever calibrated on `evaluation`."""

    calibration: DataSource | None
    evaluation: DataSource | None


@dataclass(frozen=True, slots=True)
class DataChoice:
    """Data as the user named it, read but not yet opened, since opening needs the model's preprocessing."""

    spec: DataSpec
    base: Path
    """Directory that relative paths in `spec` start from."""
    opened: RunData | None = None
    """Sources that the user made in Python; `spec` is empty then."""

    @property
    def has_calibration(self) -> bool:
        """Whether calibration data will be there."""
        return self.spec.calibration is not None or (self.opened is not None and self.opened.calibration is not None)

    def open(self, model: Model) -> RunData:
        """Return the data as arrays for the inputs of `model`.

        Raises:
            DataError: The data cannot be read, is empty, or does not fit the model.
        """
        if self.opened is not None:
            return self.opened
        return RunData(self._open(self.spec.calibration, model), self._open(self.spec.evaluation, model))

    def _open(self, spec: "SourceSpec | None", model: Model) -> DataSource | None:
        if spec is None:
            return None
        return open_source(spec, preprocessing=model.task.preprocessing, assets=model.assets, base=self.base)


def choose_data(data: "str | Path | DataSpec | Mapping[str, object] | RunData | None") -> DataChoice:
    """Return what the user named as data: nothing, a file or folder, a description, or opened sources.

    Raises:
        DataError: The description is not valid or the file is missing.
    """
    if data is None:
        return DataChoice(DataSpec(), Path())
    if isinstance(data, RunData):
        return DataChoice(DataSpec(), Path(), data)
    if isinstance(data, DataSpec):
        return DataChoice(data, Path())
    if isinstance(data, Mapping):
        return DataChoice(DataSpec.model_validate(data), Path())
    path = Path(data)
    return DataChoice(load_data_spec(path), path.parent)


class RandomInputs(DataSource):
    """Random inputs that a graph accepts, for timing and comparing where the user gave no data."""

    has_labels = False

    def __init__(self, model: Model, *, batches: int = _RANDOM_BATCHES) -> None:
        self._model = model
        self._batches = batches
        self.fingerprint = f"random-inputs-{batches}"
        self.description = "random inputs"

    def __len__(self) -> int:
        return self._batches

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield batches of the graph's own batch size; `batch_size` cannot change what the graph asks for."""
        for seed in range(self._batches):
            yield Batch(inputs=sample_inputs(self._model.ir, seed=seed), labels=None)

    def take(self, count: int) -> DataSource:
        """Return the first `count` batches."""
        return RandomInputs(self._model, batches=min(count, self._batches))


def first_batch(data: DataSource, batch_size: int) -> Batch:
    """Return the first batch of `data`.

    Raises:
        DataError: There is none.
    """
    for batch in data.batches(batch_size):
        return batch
    raise DataError(
        f"There is no sample in {data.description}.",
        expected="at least one sample",
        why="Latency and accuracy are measured on real data.",
        fix="Check the file and its columns, or leave --data out to measure on random inputs.",
    )


def fixed_batch_size(model: Model) -> int | None:
    """Return the batch size that the graph insists on, or None if it takes any."""
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) > 0 and isinstance(value.shape[0], int):
            return value.shape[0]
    return None
