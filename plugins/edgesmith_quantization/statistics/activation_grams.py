"""Gram matrices of what matrix products multiply, for rounding weights to least output error."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.observe import observe
from edgesmith.host.context import Context
from edgesmith_calibration.observers import GramObserver
from edgesmith_quantization.finding.candidates import Candidate
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.statistics.activation_ranges import calibration


def activation_grams(
    model: ir.Model, candidates: Sequence[Candidate], context: Context[QuantizeInt8Options]
) -> dict[str, NDArray[np.float64]]:
    """Return the Gram matrix [width, width] of each activation of matrix products by name.

    Empty where the option rounding does not ask for it or there is no calibration data.

    Args:
        model: The float graph that holds the candidates.
        candidates: The products to quantize.
        context: Options and data.
    """
    names = dict.fromkeys(str(c.activation.name) for c in candidates if c.node.op_type != "Conv")
    if context.options.rounding != "second-order" or not names or not context.calibration:
        return {}
    observers = observe(
        model,
        list(names),
        calibration(context),
        GramObserver,
        batch_size=context.options.batch_size,
        threads=context.threads,
        progress=context.progress,
    )
    return {name: observer.matrix for name, observer in observers.items()}
