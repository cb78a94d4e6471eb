"""How far the values of one stage moved from another's, streamed: at the outputs and inside the graph."""

import math
from collections.abc import Collection, Mapping
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.ledger import LayerError, OutputError
from edgesmith.measure.accuracy import no_samples
from edgesmith.measure.runner import Runner
from edgesmith.progress import Progress, SilentProgress

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgesmith_calibration.sources import DataSource

LOWEST_DB = -300.0
"""Reported where noise is infinitely larger than the signal: all-zero signals, values that stopped being finite."""


class Divergence:
    """Accumulates how far `actual` is from `expected` over any number of arrays. Keeps four numbers."""

    def __init__(self) -> None:
        self._signal = 0.0
        self._noise = 0.0
        self._product = 0.0
        self._actual = 0.0
        self.max_abs = 0.0
        """Largest absolute difference of one element."""

    def update(self, expected: "np.ndarray", actual: "np.ndarray") -> None:
        """Add two arrays of one shape and any numeric dtype."""
        import numpy as np

        a = expected.astype(np.float64, copy=False).ravel()
        b = actual.astype(np.float64, copy=False).ravel()
        # Masks hold infinities on purpose. Where both agree there is no error and no finite signal to count.
        same = a == b
        if same.any() and not np.isfinite(a).all():
            keep = ~(same & np.isinf(a))
            a, b = a[keep], b[keep]
        if a.size == 0:
            return
        difference = a - b
        self._signal += float(a @ a)
        self._actual += float(b @ b)
        self._product += float(a @ b)
        self._noise += float(difference @ difference)
        self.max_abs = float(np.fmax(self.max_abs, np.abs(difference).max()))

    @property
    def sqnr_db(self) -> float:
        """Ratio of signal to noise energy in decibels; infinite when equal, never below `LOWEST_DB`."""
        if self._noise == 0:
            return math.inf
        if self._signal == 0 or not math.isfinite(self._noise) or not math.isfinite(self._signal):
            return LOWEST_DB
        return max(LOWEST_DB, 10 * math.log10(self._signal / self._noise))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both, taken as one long vector; 1 when equal, 0 when undefined."""
        if self._noise == 0:
            return 1.0
        norm = math.sqrt(self._signal * self._actual)
        cosine = self._product / norm if norm > 0 else 0.0
        return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else 0.0


def output_error(
    runner: Runner,
    before: Path,
    after: Path,
    data: "DataSource",
    *,
    against: str,
    passed_over: Collection[str] = (),
    batch_size: int = 32,
    progress: Progress | None = None,
) -> OutputError:
    """Return how far the outputs of `after` are from those of `before` over `data`; of several outputs the worst.

    Args:
        runner: Where both models run.
        before: Model file compared with.
        after: Model file of the stage.
        data: Samples; labels are not used.
        against: Label of the stage that `before` is.
        passed_over: Names of outputs that do not count, such as those for a cache.
        batch_size: Samples per run.
        progress: Shows the advance.
    """
    divergences: dict[str, Divergence] = {}
    expected_batches, actual_batches = tee(data.batches(batch_size))
    pairs = zip(runner.outputs(before, expected_batches), runner.outputs(after, actual_batches), strict=True)
    total = math.ceil(len(data) / batch_size)
    for expected, actual in (progress or SilentProgress()).track(pairs, f"comparing with {against}", total):
        for name, array in expected.items():
            if name in actual and name not in passed_over and array.dtype.kind in "fiub":
                divergences.setdefault(name, Divergence()).update(array, actual[name])
    if not divergences:
        raise no_samples(data)
    return OutputError(
        against=against,
        sqnr_db=min(one.sqnr_db for one in divergences.values()),
        cosine=min(one.cosine for one in divergences.values()),
        max_abs=max(one.max_abs for one in divergences.values()),
    )


def layer_errors(
    before: "ir.Model | Path",
    after: "ir.Model | Path",
    labels: Mapping[str, str],
    data: "DataSource",
    *,
    batch_size: int = 4,
    threads: int = 1,
    round_half: bool = False,
    progress: Progress | None = None,
) -> tuple[LayerError, ...]:
    """Return how far values inside the graph moved, in the order of `labels`.

    Errors accumulate from the input of the graph on, as they do when it is deployed. Values that one of the graphs
    does not have are left out.

    Args:
        before: Graph compared with.
        after: Graph of the stage.
        labels: Value name to where it stands in the structure, in graph order.
        data: A few samples; take at most 32 of the calibration data, since every value is read out.
        batch_size: Samples per run. Bounds the memory that the values take.
        threads: Intra-op threads.
        round_half: Whether values in float16 are rounded to it, as on a device that computes in float16.
        progress: Shows the advance.
    """
    from edgesmith.execution.reference import ReferenceSession

    common = _value_names(before) & _value_names(after)
    taps = [name for name in labels if name in common]
    if not taps:
        return ()
    expected_session = ReferenceSession(before, taps=taps, threads=threads, round_half=round_half)
    actual_session = ReferenceSession(after, taps=taps, threads=threads, round_half=round_half)
    divergences = {name: Divergence() for name in taps}
    total = math.ceil(len(data) / batch_size)
    for batch in (progress or SilentProgress()).track(data.batches(batch_size), "comparing layers", total):
        # A step may have taken slots of a cache away, so each graph gets the inputs that it has.
        expected, actual = (
            session.run({name: batch.inputs[name] for name in session.input_names})
            for session in (expected_session, actual_session)
        )
        for name, divergence in divergences.items():
            if expected[name].dtype.kind == "f" and expected[name].shape == actual[name].shape:
                divergence.update(expected[name], actual[name])
    return tuple(LayerError(value=name, layer=labels[name], sqnr_db=divergences[name].sqnr_db) for name in taps)


def _value_names(model: "ir.Model | Path") -> set[str]:
    import onnx_ir as ir

    graph = ir.load(model).graph if isinstance(model, Path) else model.graph
    return {value.name for node in graph for value in node.outputs if value.name}
