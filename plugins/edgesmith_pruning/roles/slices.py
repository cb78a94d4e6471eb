"""The two slices of data that units are told apart by."""

from dataclasses import dataclass

import numpy as np

from edgesmith.data import DataChoice, required_data
from edgesmith.errors import DataError, RecipeError
from edgesmith.execution.unpadded import without_padding
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_calibration.sources import DataSource, split, without
from edgesmith_calibration.sources.base import whole_labels
from edgesmith_calibration.sources.iterables import as_samples
from edgesmith_calibration.spec import DataSpec, load_data_spec
from edgesmith_pruning.options.units import AnalyseUnitsOptions

_SUFFIXES = (".npz", ".csv", ".tsv", ".jsonl", ".txt")
_HELD_OUT = 0.25
"""Share of each slice that ablations are tried on."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Samples of the attribute and of the utility, equally many."""

    attribute: DataSource
    utility: DataSource

    @property
    def description(self) -> str:
        """What they are, for people."""
        return f"attribute: {self.attribute.description}; utility: {self.utility.description}"

    def apart(self, seed: int) -> tuple["Slices", "Slices"]:
        """Return the larger part of both slices, and a part that shares no sample with it.

        Raises:
            DataError: There are too few samples.
        """
        count = max(1, round((1 - _HELD_OUT) * len(self.attribute)))
        first, second = split(self.attribute, count, seed=seed), split(self.utility, count, seed=seed)
        return Slices(first[0], second[0]), Slices(first[1], second[1])

    def unpadded(self, model: Model) -> tuple["Slices", str]:
        """Return both without padding, and a remark where padding stays in."""
        attentions = find_structure(model.ir).attentions
        attribute, remark = without_padding(model.ir, attentions, self.attribute)
        utility, _ = without_padding(model.ir, attentions, self.utility)
        return Slices(attribute, utility), remark


def open_slices(model: Model, context: Context[AnalyseUnitsOptions]) -> Slices:
    """Return the slices that the options name, cut to one size.

    Raises:
        DataError: There is no calibration data, a file cannot be read, or one of the slices is empty.
        RecipeError: The options name no attribute, or two.
    """
    options = context.options
    data = required_data(
        context.calibration, "analyse-units", why="units are told apart by what they do on it and on the attribute"
    )
    if (options.attribute is None) == (not options.attribute_labels):
        raise RecipeError(
            "analyse-units is not told what the attribute is",
            expected="one of the options attribute and attribute_labels",
            why="a unit's role is what it does for the attribute against the rest",
            fix="name a file with samples of the attribute, or the classes that are the attribute",
        )
    slices = _from_file(model, options, data) if options.attribute is not None else _from_labels(options, data)
    count = min(options.samples, len(slices.attribute), len(slices.utility))
    return Slices(slices.attribute.take(count), slices.utility.take(count))


def _from_file(model: Model, options: AnalyseUnitsOptions, data: DataSource) -> Slices:
    path = options.attribute
    if path is None or path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"{path} is no file with samples",
            expected=f"a file that ends in {', '.join(_SUFFIXES)}",
            why="the analysis is done again when the content of that file changes, and in no other case",
            fix="write the samples of the attribute into one file, or use attribute_labels",
        )
    spec = load_data_spec(path).evaluation
    everything = DataSpec(evaluation=None if spec is None else spec.model_copy(update={"part": "all"}))
    attribute = DataChoice(everything, path.parent).open(model).evaluation
    if not attribute:
        raise _empty(f"the file {path}")
    return Slices(attribute, without(data, attribute))


def _from_labels(options: AnalyseUnitsOptions, data: DataSource) -> Slices:
    labels = as_samples(data).labels() if data.has_labels else None
    if labels is None or labels.ndim != 1:
        raise DataError(
            "the calibration data has no label for each sample",
            expected="one class for each sample",
            why="attribute_labels chooses samples by class",
            fix="name a file with samples of the attribute in the option attribute",
        )
    chosen = np.isin(whole_labels(labels, data.description), options.attribute_labels)
    for part, name in ((chosen, "attribute"), (~chosen, "utility")):
        if not part.any():
            raise _empty(f"the {name} by attribute_labels")
    return Slices(data.select(np.flatnonzero(chosen)), data.select(np.flatnonzero(~chosen)))


def _empty(what: str) -> DataError:
    return DataError(
        f"there is no sample in {what}",
        expected="samples of the attribute and samples without it",
        why="units are told apart by both",
        fix="check the file and the classes; `edgesmith inspect` shows the classes of a model",
    )
