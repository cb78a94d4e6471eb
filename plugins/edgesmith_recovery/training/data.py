"""The samples of a training: which are held out, in which order the others come, and without needless padding."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from edgesmith.data import fixed_batch_size
from edgesmith.execution.split import Indices, Split, split_samples
from edgesmith.execution.unpadded import Padding, used_length
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_calibration.sources import Batch, DataSource
from edgesmith_recovery.options.recover import RecoverOptions


def samples_of(context: Context[RecoverOptions]) -> DataSource | None:
    """Return the samples with all inputs of the source; the model may have fewer, but has no others."""
    return context.calibration if context.source_calibration is None else context.source_calibration


def training_samples(model: Model, context: Context[RecoverOptions]) -> tuple[DataSource, Split, int]:
    """Return the calibration samples that may be used, their split, and the batch size."""
    options, data = context.options, samples_of(context)
    if data is None:  # `check` refuses such a context
        raise ValueError("no calibration data")
    data = data if options.samples is None else data.take(options.samples)
    fixed = fixed_batch_size(model)
    return data, split_samples(len(data), options.held_out, fixed or 1, context.seed), fixed or options.batch_size


class SampleBatches:
    """Batches of chosen samples, mixed anew in each epoch.

    Args:
        source: All samples.
        split: Which of them train and which decide.
        batch_size: Samples per batch; what is left over of an epoch is left out, unless it is all there is.
        padding: How the graph is told about padding; batches are then cut behind their longest sample.
        seed: Decides the order.
    """

    def __init__(self, source: DataSource, split: Split, batch_size: int, padding: Padding | None, seed: int) -> None:
        self._source, self._split, self._padding, self._seed = source, split, padding, seed
        self._batch_size = min(batch_size, split.training.size)

    @property
    def count(self) -> int:
        """Batches per epoch."""
        return self._split.training.size // self._batch_size

    def order(self, epoch: int) -> Sequence[Indices]:
        """Return the batches of an epoch, as sample numbers."""
        mixed = np.random.default_rng((self._seed, epoch)).permutation(self._split.training)
        return [np.sort(part) for part in np.array_split(mixed[: self.count * self._batch_size], self.count)]

    def load(self, samples: Indices) -> Batch:
        """Return the batch of these samples."""
        return self._cut(next(iter(self._source.select(samples).batches(samples.size))))

    def held_out(self) -> Iterator[tuple[Batch, int]]:
        """Yield the held-out samples in batches, each with its number of samples."""
        for batch in self._source.select(self._split.held_out).batches(self._batch_size):
            yield self._cut(batch), batch.size

    def _cut(self, batch: Batch) -> Batch:
        if self._padding is None:
            return batch
        mask = batch.inputs[self._padding.mask]
        width, length = mask.shape[1], used_length(mask)
        inputs = {
            name: array[:, :length] if name in self._padding.inputs else array for name, array in batch.inputs.items()
        }
        labels = batch.labels
        if labels is not None and labels.ndim == 2 and labels.shape[1] == width:
            labels = labels[:, :length]
        return replace(batch, inputs=inputs, labels=labels)
