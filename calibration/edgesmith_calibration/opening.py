"""From a data spec to the source that reads it."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing
from edgesmith_calibration.sources import (
    CallableSource,
    DataSource,
    ImageFolderSource,
    Layout,
    NpzSource,
    TextColumns,
    TextSource,
    TokenWindowSource,
)
from edgesmith_calibration.sources.iterables import fault_of
from edgesmith_calibration.spec import ImagesSpec, NpzSpec, PythonSpec, TextSpec
from edgesmith_calibration.text_encoder import TextEncoder


def open_whole(
    spec: NpzSpec | ImagesSpec | TextSpec | PythonSpec,
    preprocessing: Preprocessing | None,
    assets: Mapping[str, bytes],
    base: Path,
    classes: Sequence[str],
) -> DataSource:
    """Return all samples that a spec names, whatever its part and limit. Arguments are those of `open_source`."""
    match spec:
        case NpzSpec():
            return NpzSource(base / spec.path, spec.labels)
        case ImagesSpec():
            if not isinstance(preprocessing, ImagePreprocessing):
                raise _no_preprocessing("images", base / spec.path)
            return ImageFolderSource(base / spec.path, preprocessing, spec.pattern, spec.classes or classes)
        case TextSpec():
            if not isinstance(preprocessing, TextPreprocessing):
                raise _no_preprocessing("texts", base / spec.path)
            return _open_text(spec, TextEncoder(preprocessing, assets), base / spec.path, classes)
        case PythonSpec():
            return _open_function(spec)


def _open_text(spec: TextSpec, encoder: TextEncoder, path: Path, classes: Sequence[str]) -> DataSource:
    windows = encoder.preprocessing.next_token if spec.windows is None else spec.windows
    if windows:
        return TokenWindowSource(path, encoder, spec.text_column)
    columns = TextColumns(spec.text_column, spec.pair_column, spec.label_column, spec.classes or tuple(classes))
    return TextSource(path, encoder, columns)


def _open_function(spec: PythonSpec) -> DataSource:
    module, _, name = spec.function.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # The user's module runs here, and may raise anything.
        raise DataError(
            f"the data function '{spec.function}' cannot be imported: {fault_of(error)}",
            expected="'module:function' of a module that Python finds",
            why="samples come from this function",
            fix="correct the name or the module, install it, or set PYTHONPATH to the folder it is in",
        ) from error
    if not callable(function):
        raise DataError(
            f"'{spec.function}' is a {type(function).__name__}",
            expected="a function without arguments that returns an iterable of samples",
            why="samples come from this function",
            fix="name a function",
        )
    layout = Layout(inputs=spec.inputs, labels=spec.labels, batched=spec.batched)
    return CallableSource(function, layout, f"the function {spec.function}")


def _no_preprocessing(kind: str, path: Path) -> DataError:
    return DataError(
        f"the model does not say how {kind} in {path} become inputs",
        expected=f"a model that brings its preprocessing of {kind}",
        why="the same pixels or tokens must reach the model as when it was trained",
        fix="compile from a directory with a tokenizer or image processor, describe it under `preprocessing:` "
        "in a YAML data description (see `edgesmith schema --data`), or pass arrays in an .npz file",
    )
