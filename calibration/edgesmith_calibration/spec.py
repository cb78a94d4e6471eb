"""What data to use, as a record: read from a YAML or JSON file, or derived from a bare data file or folder.

Calibration and evaluation never share a sample. A bare file or folder is cut in two. Two specs that name the same
data are given a part each; two parts of different files are compared sample by sample when they are opened with
`open_data`, and what is evaluated is taken out of calibration.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.preprocessing import Preprocessing

if TYPE_CHECKING:
    from edgesmith_calibration.sources import DataSource

CALIBRATION_SHARE = 0.2
"""Share of a data set that its calibration part gets."""
LARGEST_CALIBRATION = 512
"""Largest number of samples in a calibration part. More change ranges little."""

_SPEC_SUFFIXES = (".yaml", ".yml", ".json")
_TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
_LARGEST_SPEC_BYTES = 1 << 20


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Literal["all", "calibration", "evaluation"] = Field(
        default="all", description="Use all samples, or one of two parts that share none."
    )
    limit: int | None = Field(
        default=None, ge=1, description="Use at most this many samples, classes in equal shares, chosen by `seed`."
    )
    seed: int = Field(default=0, description="Another seed puts other samples into the parts.")


class _FileSpec(_Spec):
    path: Path = Field(description="File or folder; relative paths start at the folder of the data file.")


class NpzSpec(_FileSpec):
    """Arrays named like the graph's inputs in an .npz file."""

    kind: Literal["npz"] = "npz"
    labels: str | None = Field(
        default=None, description="Name of the array with the labels. None: labels or label, if there is one."
    )


class ImagesSpec(_FileSpec):
    """A folder of images, labelled by the names of its subfolders or by a pattern in the file names."""

    kind: Literal["images"] = "images"
    pattern: str = Field(
        default="",
        description=r"Regular expression for the label in the file name, such as '^\d+' or '_(\w+)\.'; its first "
        "group, or else the whole match, is the label.",
    )
    classes: tuple[str, ...] = Field(default=(), description="Class names in the order of the model's outputs.")


class TextSpec(_FileSpec):
    """Texts in a .csv, .tsv, .jsonl or .txt file."""

    kind: Literal["text"] = "text"
    text_column: str = "text"
    pair_column: str | None = Field(default=None, description="Column of the second text, for models of text pairs.")
    label_column: str | None = Field(
        default=None, description="Column of the label. None: label, labels, category, class or target, if any."
    )
    windows: bool | None = Field(
        default=None,
        description="Cut the whole text into windows and take the next tokens for labels. None: as the model's "
        "preprocessing says.",
    )
    classes: tuple[str, ...] = Field(default=(), description="Class names in the order of the model's outputs.")


class PythonSpec(_Spec):
    """A function of an installed module that returns an iterable of samples. Opening it runs that module."""

    kind: Literal["python"] = "python"
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="As in 'package.module:function'.")
    inputs: tuple[str, ...] = Field(default=(), description="Graph inputs, where samples are not mappings.")
    labels: str | None = Field(default=None, description="Field with the labels.")
    batched: bool = Field(default=False, description="Whether the function yields batches rather than samples.")


SourceSpec = Annotated[NpzSpec | ImagesSpec | TextSpec | PythonSpec, Field(discriminator="kind")]


class DataSpec(BaseModel):
    """Data for calibration and for evaluation. Where both name the same data, each gets a part of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: SourceSpec | None = None
    evaluation: SourceSpec | None = None
    preprocessing: Preprocessing | None = Field(
        default=None,
        description="How raw texts or images become inputs, for models that do not bring it (ONNX files, nn.Module). "
        "A tokenizer it names is a file beside the data description.",
    )

    @model_validator(mode="after")
    def _separate(self) -> "DataSpec":
        first, second = self.calibration, self.evaluation
        if first is None or second is None or _origin(first) != _origin(second):
            return self
        if first.part == second.part == "all":
            # Both parts must come from one cut, so the calibration seed decides for both. The record is still being
            # made here, and pydantic offers no other way to derive one field of a frozen record from another.
            object.__setattr__(self, "calibration", first.model_copy(update={"part": "calibration"}))
            object.__setattr__(self, "evaluation", second.model_copy(update={"part": "evaluation", "seed": first.seed}))
            return self
        if {first.part, second.part} != {"calibration", "evaluation"} or first.seed != second.seed:
            raise ValueError(
                "calibration and evaluation name the same data with parts that overlap; leave `part` out of both, or "
                "set it to calibration in one and evaluation in the other with equal seeds"
            )
        return self


def load_data_spec(path: str | Path) -> DataSpec:
    """Return the data description in a file, or the one that follows from a bare data file or folder.

    A .yaml, .yml or .json file holds a `DataSpec`. An .npz, .csv, .tsv, .jsonl or .txt file and a folder of images are
    cut into a calibration and an evaluation part. Paths in the result are relative to the folder of `path`.

    Raises:
        DataError: The file is missing, of another kind, or not a valid data description.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.exists():
        raise _unusable(path, "does not exist")
    if path.is_dir():
        return _both_parts(ImagesSpec(path=Path(path.name) if path.name else Path()))
    if suffix == ".npz":
        return _both_parts(NpzSpec(path=Path(path.name)))
    if suffix in _TEXT_SUFFIXES:
        return _both_parts(TextSpec(path=Path(path.name)))
    if suffix in _SPEC_SUFFIXES:
        return _parse(path)
    raise _unusable(path, "is of an unknown kind")


def open_source(
    spec: SourceSpec,
    *,
    preprocessing: Preprocessing | None = None,
    assets: Mapping[str, bytes] | None = None,
    base: Path = Path(),
    classes: Sequence[str] = (),
) -> "DataSource":
    """Return the samples that a spec describes.

    Args:
        spec: What to read.
        preprocessing: How raw text and images become inputs; from the model's task.
        assets: The model's files by name; holds the tokenizer.
        base: Folder that relative paths start at.
        classes: Class names in the order of the model's outputs; from the model's task.

    Raises:
        DataError: The data is missing, empty or damaged, or the model has no preprocessing for it.
    """
    from edgesmith_calibration.opening import open_whole
    from edgesmith_calibration.sources import split

    source = open_whole(spec, preprocessing, assets or {}, base, classes)
    if spec.part != "all":
        count = min(LARGEST_CALIBRATION, max(1, int(CALIBRATION_SHARE * len(source))))
        calibration, evaluation = split(source, count, seed=spec.seed)
        source = calibration if spec.part == "calibration" else evaluation
    if spec.limit is not None and spec.limit < len(source):
        source, _ = split(source, spec.limit, seed=spec.seed)
    return source


def open_data(
    spec: DataSpec,
    *,
    preprocessing: Preprocessing | None = None,
    assets: Mapping[str, bytes] | None = None,
    base: Path = Path(),
    classes: Sequence[str] = (),
) -> "tuple[DataSource | None, DataSource | None]":
    """Return the calibration and the evaluation samples; None where the spec names none.

    Calibration samples that are also evaluated on are left out. Arguments and errors are those of `open_source`.

    Raises:
        DataError: As for `open_source`; or no calibration sample is left.
    """
    from edgesmith_calibration.sources import without

    calibration, evaluation = (
        None
        if one is None
        else open_source(one, preprocessing=preprocessing, assets=assets, base=base, classes=classes)
        for one in (spec.calibration, spec.evaluation)
    )
    if calibration is not None and evaluation is not None:
        calibration = without(calibration, evaluation)
    return calibration, evaluation


def _origin(spec: NpzSpec | ImagesSpec | TextSpec | PythonSpec) -> str:
    """Return what tells whether two specs name the same data."""
    return spec.function if isinstance(spec, PythonSpec) else str(spec.path)


def _both_parts(spec: NpzSpec | ImagesSpec | TextSpec) -> DataSpec:
    return DataSpec(calibration=spec, evaluation=spec)


def _parse(path: Path) -> DataSpec:
    import yaml

    class PlainLoader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not allowed: they let a small file stand for a huge one")
            return super().compose_node(parent, index)

    try:
        if path.stat().st_size > _LARGEST_SPEC_BYTES:
            raise ValueError(f"it is larger than {_LARGEST_SPEC_BYTES} bytes")
        # JSON is YAML; the loader makes plain data only.
        content = yaml.load(path.read_text(encoding="utf-8"), PlainLoader)
        return TypeAdapter(DataSpec).validate_python(content)
    except ValidationError as error:
        raise _invalid(path, "; ".join(_problem(one) for one in error.errors()[:5])) from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _invalid(path, " ".join(str(error).split())) from error


def _problem(error: Mapping[str, object]) -> str:
    location = error["loc"]
    place = ".".join(map(str, location)) if isinstance(location, tuple) else ""
    return f"{place or 'the whole'}: {str(error['msg'])[:300]}"


def _invalid(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} is not a valid data description: {reason}",
        expected="`calibration` and `evaluation`, each with `kind` (npz, images, text or python) and its fields",
        why="data decides the ranges of the model and the score that is reported",
        fix="correct the fields named above; `edgesmith schema --data` prints all of them",
    )


def _unusable(path: Path, reason: str) -> DataError:
    return DataError(
        f"the data {path} {reason}",
        expected="a data description (.yaml, .json), arrays (.npz), texts (.csv, .tsv, .jsonl, .txt) or a folder "
        "of images",
        why="calibration and evaluation need data",
        fix="correct the path, or convert the data to one of these",
    )
