"""Solves the layers of a graph without some blocks towards what the stream held in the graph with all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.segments import SegmentedRun
from edgesmith_calibration.moments import MomentsObserver
from edgesmith_calibration.sources import DataSource
from edgesmith_folding.compensation.sites import Site
from edgesmith_folding.compensation.solve import Solution, best_solution, in_units_of, without_constant

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths to choose from on samples held out."""

_EVERY = 4
"""Every fourth run is held out, or the last one where there are fewer."""


@dataclass(frozen=True, slots=True)
class Running:
    """How calibration data is run."""

    data: DataSource
    scratch: Path
    batch_size: int
    threads: int

    @property
    def batches(self) -> int:
        """How many batches there are, counted no further than decides which are held out.

        A source may give fewer samples at a time than it is asked for: those of texts without padding differ in length.
        """
        return sum(1 for _ in islice(self.data.batches(self.batch_size), _EVERY))

    def through(self, model: ir.Model, stops: Sequence[Sequence[str]]) -> SegmentedRun:
        """Return a run of a graph from one group of values to the next."""
        return SegmentedRun(
            model, stops, self.data, scratch=self.scratch, batch_size=self.batch_size, threads=self.threads
        )


def correct(
    given: ir.Model, folded: ir.Model, sites: Sequence[Site], running: Running, ridge: float | None = None
) -> list[Solution]:
    """Solve the sites one after the other and write those whose error falls; return all solutions.

    Each site reads the stream as the sites before it have left it, so it makes up for what they could not.

    Args:
        given: The graph with all blocks.
        folded: The graph without them; the weights of the sites change.
        sites: In the order of the data.
        running: Data and how it is run.
        ridge: How strongly weights are held; None to choose.

    Raises:
        DataError: There is one batch only, so none can be held out, or an activation is NaN or infinite.
    """
    there = [[site.target] for site in sites]
    here = [[str(site.input.name), *([] if site.base is None else [str(site.base.name)])] for site in sites]
    teacher, student = running.through(given, there), running.through(folded, here)
    last = running.batches - 1
    solutions = []
    for site in sites:
        fit, judge = MomentsObserver(site.place), MomentsObserver(site.place)
        for index, (wanted, found) in enumerate(zip(teacher.advance(), student.advance(), strict=True)):
            stream = _rows(wanted[site.target])
            base = 0.0 if site.base is None else _rows(found[str(site.base.name)])
            held_out = index % _EVERY == last
            rows = in_units_of(_rows(found[str(site.input.name)]), stream - base, stream)
            (judge if held_out else fit).update(*rows)
        fitted, judged = without_constant(fit.moments), without_constant(judge.moments)
        solution = best_solution(fitted, judged, site.matrix, RIDGES if ridge is None else (ridge,))
        if solution.better:
            site.write(solution.matrix)
        solutions.append(solution)
    return solutions


def _rows(array: NDArray[np.floating]) -> NDArray[np.floating]:
    return array.reshape(-1, array.shape[-1])
