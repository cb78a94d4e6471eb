"""The data of a run: what a user named, opened for one model, with calibration and evaluation kept apart."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from edgesmith.errors import DataError, ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import dimensions_for, runnable_dimensions
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.cache import find_caches
from edgesmith.model import Model
from edgesmith_calibration.checked import CheckedSource, InputForm
from edgesmith_calibration.preprocessing import ImagePreprocessing, TextPreprocessing
from edgesmith_calibration.sources import Batch, DataSource, without
from edgesmith_calibration.spec import DataSpec, load_data_spec, open_data

_RANDOM_BATCHES = 8


@dataclass(frozen=True, slots=True)
class RunData:
    """Opened data. Samples of `evaluation` are taken out of `calibration` before anything is calibrated."""

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

    @property
    def is_prepared(self) -> bool:
        """Whether the samples are arrays for the graph already, whose sizes no preprocessing decides."""
        parts = [part for part in (self.spec.calibration, self.spec.evaluation) if part is not None]
        return self.opened is not None or any(part.kind == "npz" for part in parts)

    def equip(self, model: Model) -> Model:
        """Return `model` with the preprocessing that the description gives, if any, and the tokenizer that it names.

        Raises:
            DataError: The tokenizer cannot be read.
        """
        preprocessing = self.spec.preprocessing
        if preprocessing is None:
            return model
        assets = dict(model.assets)
        if isinstance(preprocessing, TextPreprocessing):
            file = self.base / preprocessing.tokenizer
            try:
                assets[file.name] = file.read_bytes()
            except OSError as error:
                raise DataError(
                    f"The tokenizer {file} cannot be read: {error.strerror}.",
                    expected="a tokenizer.json beside the data description",
                    why="The same tokens must reach the model as when it was trained.",
                    fix="Correct `preprocessing.tokenizer` in the data description.",
                ) from error
            preprocessing = preprocessing.model_copy(update={"tokenizer": file.name})
        return replace(model, task=model.task.model_copy(update={"preprocessing": preprocessing}), assets=assets)

    def open(self, model: Model) -> RunData:
        """Return the data as arrays for the inputs of `model`, which has been equipped.

        Raises:
            DataError: The data cannot be read, is empty, or does not fit the model.
        """
        _require_image_input(self.spec, model)
        if self.opened is not None:
            calibration, evaluation = self.opened.calibration, self.opened.evaluation
            if calibration is not None and evaluation is not None:
                calibration = without(calibration, evaluation)
        else:
            calibration, evaluation = open_data(
                self.spec,
                preprocessing=model.task.preprocessing,
                assets=model.assets,
                base=self.base,
                classes=model.task.labels,
            )
        forms = _input_forms(model)
        size = fixed_batch_size(model)
        checked = (None if one is None else CheckedSource(one, forms, size) for one in (calibration, evaluation))
        return RunData(*checked)


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
        return DataChoice(_parse(data), Path())
    path = Path(data)
    return DataChoice(load_data_spec(path), path.parent)


def _parse(data: Mapping[str, object]) -> DataSpec:
    try:
        return DataSpec.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"In the data description, {'.'.join(map(str, first['loc'])) or 'the top level'}: {first['msg']}.",
            expected="`calibration` and `evaluation`, each with `kind` (npz, images, text or python) and its fields",
            why="Data decides the ranges of the model and the score that is reported.",
            fix="Correct that field; `edgesmith schema --data` prints all of them.",
        ) from error


def _require_image_input(spec: DataSpec, model: Model) -> None:
    """Refuse images that would become an input which the graph does not have.

    Raises:
        DataError: They would.
    """
    preprocessing = model.task.preprocessing
    names = [str(value.name) for value in model.graph.inputs if value.name not in model.graph.initializers]
    has_images = any(part is not None and part.kind == "images" for part in (spec.calibration, spec.evaluation))
    if not has_images or not isinstance(preprocessing, ImagePreprocessing) or preprocessing.input in names:
        return
    raise DataError(
        f"The images become the input {preprocessing.input!r}, and the graph has none of that name.",
        expected=f"an input of the graph: {', '.join(names)}",
        why="`preprocessing.input` says which input the images fill; without it that is pixel_values.",
        fix=f"Write `preprocessing: {{kind: image, input: {names[0] if names else 'NAME'}, ...}}` in the description.",
    )


def _input_forms(model: Model) -> dict[str, InputForm]:
    """Return what the graph declares of its inputs. Caches without fixed length may be empty."""
    caches = {cache.input.name for cache in find_caches(model.ir) if cache.length_axis is not None}
    forms = {}
    for value in model.graph.inputs:
        if value.name is None or value.name in model.graph.initializers or value.dtype is None:
            continue
        shape = None if value.shape is None else tuple(one if isinstance(one, int) else None for one in value.shape)
        forms[value.name] = InputForm(value.dtype.numpy().name, shape, value.name in caches)
    return forms


def fitted(data: DataSource, model: Model) -> DataSource:
    """Return the data without inputs that a step has taken from the graph; the data itself where there are none."""
    names = {value.name for value in model.graph.inputs}
    given = next(iter(data.take(1).batches(1)), Batch({})).inputs
    return data if set(given) <= names else CheckedSource(data, _input_forms(model))


class RandomInputs(DataSource):
    """Random inputs that a graph accepts, for timing and comparing where the user gave no data.

    A sample here is a whole batch, since some graphs take inputs that no batch axis cuts.

    Args:
        model: The graph.
        count: How many there are.
        batch_size: Size of such a batch, where the graph leaves it open and runs on it; None takes what it runs on.
    """

    description = "random inputs"
    has_labels = False

    def __init__(self, model: Model, *, count: int = _RANDOM_BATCHES, batch_size: int | None = None) -> None:
        self._model = model
        self._count = count
        self._batch_size = batch_size
        self._dimensions: dict[str, int] | None = None
        self.fingerprint = f"random-inputs-{count}" + (f"-of-{batch_size}" if batch_size else "")

    def __len__(self) -> int:
        return self._count

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield every sample; `batch_size` cannot change what the graph asks for."""
        if self._dimensions is None:
            self._dimensions = _random_sizes(self._model, self._batch_size)
        for seed in range(self._count):
            inputs = sample_inputs(self._model.ir, seed=seed, dimensions=self._dimensions)
            yield Batch(inputs=inputs, labels=None)

    def take(self, count: int) -> DataSource:
        """Return the first `count` samples."""
        return RandomInputs(self._model, count=min(count, self._count), batch_size=self._batch_size)


def _random_sizes(model: Model, batch_size: int | None) -> dict[str, int]:
    """Return sizes of the open dimensions on which the graph runs, with `batch_size` samples where that works."""
    found = runnable_dimensions(model.ir)
    if batch_size is None:
        return found
    wanted = found | dimensions_for(model.ir, batch_size, None)
    if wanted == found:
        return found
    try:
        ReferenceSession(model.ir).run(sample_inputs(model.ir, dimensions=wanted))
    except (ModelError, DataError):
        return found
    return wanted


def required_data(data: DataSource | None, purpose: str, *, why: str, fix: str = "") -> DataSource:
    """Return the data of a run that cannot do without.

    Args:
        data: What the run was given.
        purpose: What it is for, such as "pruning"; used in the error.
        why: Why it is needed.
        fix: What to do instead of passing data, if anything.

    Raises:
        DataError: There is none, or no sample in it.
    """
    if not data:
        raise DataError(
            f"there is no calibration data for {purpose}",
            expected="a data source with at least one sample",
            why=why,
            fix="pass data with --data" + (f", or {fix}" if fix else ""),
        )
    return data


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
    """Return the batch size that every input of the graph insists on, or None where they take any or disagree."""
    shapes = [value.shape for value in model.graph.inputs if value.name not in model.graph.initializers]
    sizes = {shape[0] for shape in shapes if shape is not None and len(shape) > 0}
    if len(sizes) != 1:
        return None
    (size,) = sizes
    return size if isinstance(size, int) and size > 0 else None
