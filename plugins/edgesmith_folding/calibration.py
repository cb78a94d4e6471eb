"""Calibration data of a step, without padding."""

from typing import Any

import onnx_ir as ir

from edgesmith.data import required_data
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
    why, fix = "scores and closed forms look at what the network computes", "choose options that need none"
    data = required_data(context.calibration, "folding blocks", why=why, fix=fix)
    cut, remark = without_padding(model, attentions, data.take(samples))
    if remark:
        context.notes.remark(remark)
    return cut
