"""Data sources: files, folders and Python objects as batches of graph inputs."""

from edgesmith_calibration.sources.arrays import ArraySource, NpzSource
from edgesmith_calibration.sources.base import Batch, DataSource
from edgesmith_calibration.sources.images import ImageFolderSource
from edgesmith_calibration.sources.iterables import CallableSource, IterableSource, Layout
from edgesmith_calibration.sources.samples import SampleSource
from edgesmith_calibration.sources.split import split, without
from edgesmith_calibration.sources.texts import TextColumns, TextSource, TokenWindowSource

__all__ = [
    "ArraySource",
    "Batch",
    "CallableSource",
    "DataSource",
    "ImageFolderSource",
    "IterableSource",
    "Layout",
    "NpzSource",
    "SampleSource",
    "TextColumns",
    "TextSource",
    "TokenWindowSource",
    "split",
    "without",
]
