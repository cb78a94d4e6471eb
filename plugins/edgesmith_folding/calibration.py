"""Calibration data of a step, without padding."""

from typing import Any

import onnx_ir as ir

from edgesmith.errors import DataError
from edgesmith.execution.unpadded import without_padding
from edgesmith.graph.structure import Attention
from edgesmith.host.context import Context
from edgesmith_calibration.sources import DataSource


def calibration_data(
    model: ir.Model, attentions: tuple[Attention, ...], context: Context[Any], samples: int
) -> DataSource:
    """Return the first samples of the run's calibration data, cut behind what is not padding.

    Args:
        model: The graph that will run on them.
        attentions: Its attention layers.
        context: Holds the data, and takes a remark where padding stays in.
        samples: Largest number of samples.

    Raises:
        DataError: There is none.
    """
    data = context.calibration
    if data is None or len(data) == 0:
        raise DataError(
            "there is no calibration data to fold blocks with",
            expected="a data source with at least one sample",
            why="scores and closed forms look at what the network computes",
            fix="pass data with --data, or choose options that need none",
        )
    cut, remark = without_padding(model, attentions, data.take(samples))
    if remark:
        context.notes.remark(remark)
    return cut
