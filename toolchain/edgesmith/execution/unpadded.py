"""Calibration data without padding, where the graph says which positions are padding.

A padded position holds whatever the model makes of the pad token, often with outliers, and no output depends on it.
Cutting the padding off before a sample runs keeps these numbers out of every statistic, and makes calibration faster.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from edgesmith.graph.cache import find_caches
from edgesmith.graph.dataflow import Dataflow, data_inputs
from edgesmith.graph.structure import Attention
from edgesmith_calibration.sources import Batch, DataSource


class UnpaddedSource(DataSource):
    """The samples of another source one by one, each cut behind its last position that is not masked.

    Args:
        source: Where the samples come from.
        mask: Name of the input that is 0 at padding, [samples, positions].
        inputs: Names of the inputs to cut along their second dimension, `mask` among them.
    """

    def __init__(self, source: DataSource, mask: str, inputs: frozenset[str]) -> None:
        self._source, self._mask, self._inputs = source, mask, inputs
        self.description = f"{source.description} without padding"
        self.has_labels = source.has_labels
        self.fingerprint = source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def select(self, indices: ArrayLike) -> DataSource:
        """Return the samples at `indices`, which ascend, without padding too."""
        return UnpaddedSource(self._source.select(indices), self._mask, self._inputs)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield each sample as a batch of its own, whatever `batch_size` is: they differ in length."""
        del batch_size
        for batch in self._source.batches(1):
            length = used_length(batch.inputs[self._mask])
            cut = {name: array[:, :length] if name in self._inputs else array for name, array in batch.inputs.items()}
            yield Batch(cut, batch.labels)


def used_length(mask: NDArray[Any]) -> int:
    """Return how many leading positions hold everything that the mask shows, at least 1."""
    shown = np.flatnonzero((mask != 0).any(axis=0))
    return int(shown[-1]) + 1 if shown.size else 1


@dataclass(frozen=True, slots=True)
class Padding:
    """How a graph is told which positions are padding."""

    mask: str
    """Name of the input that is 0 at padding, [samples, positions]."""
    inputs: frozenset[str]
    """Names of the inputs with positions along their second dimension, `mask` among them."""


def find_padding(model: ir.Model, attentions: tuple[Attention, ...]) -> tuple[Padding | None, str]:
    """Return how the graph is told about padding, or None, with the reason where it masks padding all the same.

    Args:
        model: The graph.
        attentions: Its attention layers.
    """
    inputs = _mask_inputs(model, attentions)
    if inputs is None:
        return None, ""
    if len(inputs) != 1:
        return None, f"several inputs make the mask ({', '.join(sorted(str(value.name) for value in inputs))})"
    (mask,) = inputs
    if mask.shape is None or len(mask.shape) != 2 or isinstance(mask.shape[1], int):
        return None, f"the length of the input {mask.name} is fixed"
    length = mask.shape[1]
    if find_caches(model):
        return None, f"the input {mask.name} covers a cache of earlier tokens too"
    cut = frozenset(
        str(value.name)
        for value in model.graph.inputs
        if value.shape is not None and len(value.shape) > 1 and value.shape[1] == length
    )
    return Padding(str(mask.name), cut), ""


def without_padding(model: ir.Model, attentions: tuple[Attention, ...], data: DataSource) -> tuple[DataSource, str]:
    """Return the data without padding, and a remark where the data holds padding that stays in.

    Args:
        model: The graph that will run on the data.
        attentions: Its attention layers.
        data: Samples to cut.
    """
    padding, _ = find_padding(model, attentions)
    if padding is None:
        reason = why_padding_stays(model, attentions, data)
        return data, f"Statistics include padding: {reason}." if reason else ""
    return UnpaddedSource(data, padding.mask, padding.inputs), ""


def why_padding_stays(model: ir.Model, attentions: tuple[Attention, ...], data: DataSource) -> str:
    """Return why padding of these samples cannot be cut off; empty where they have none, or it can.

    Args:
        model: The graph that will run on the data.
        attentions: Its attention layers.
        data: Samples.
    """
    _, reason = find_padding(model, attentions)
    names = {str(value.name) for value in _mask_inputs(model, attentions) or []} if reason else set()
    batches = data.batches(1) if names else ()
    padded = any((batch.inputs[name] == 0).any() for batch in batches for name in names & batch.inputs.keys())
    return reason if padded else ""


def find_mask(model: ir.Model, attentions: tuple[Attention, ...]) -> str | None:
    """Return the name of the one input [samples, positions] that is 0 at padding, also where nothing can be cut.

    Its last positions are those of the tokens; where a graph has caches, those of earlier tokens come first. None where
    there is no such input.

    Args:
        model: The graph.
        attentions: Its attention layers.
    """
    inputs = _mask_inputs(model, attentions) or []
    named = [str(value.name) for value in inputs if value.shape is not None and len(value.shape) == 2]
    return named[0] if len(inputs) == len(named) == 1 else None


def _mask_inputs(model: ir.Model, attentions: tuple[Attention, ...]) -> list[ir.Value] | None:
    """Return the inputs that masks of padding are computed from; None where there is no such mask.

    What is computed from images, such as the sizes of merged tokens, hides no padding.
    """
    masks = [attention.mask for attention in attentions if attention.padding_mask and attention.mask is not None]
    names = _inputs_behind(model, masks)
    found = [value for value in model.graph.inputs if value.name in names]
    return [value for value in found if not _is_image(value)] or None


def _is_image(value: ir.Value) -> bool:
    floating = value.dtype is not None and value.dtype.is_floating_point()
    return floating and value.shape is not None and len(value.shape) > 2


def _inputs_behind(model: ir.Model, masks: list[str]) -> set[str]:
    """Return the names of the inputs whose numbers, not only shapes, the masks are computed from."""
    flow = Dataflow(model)
    inputs = set(model.graph.inputs)
    found: set[str] = set()
    for name in dict.fromkeys(masks):
        value = flow.value(name)
        read = {source for node in flow.ancestors(value) for source in data_inputs(node)} | {value}
        found |= {str(source.name) for source in read & inputs}
    return found
