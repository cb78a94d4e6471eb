"""Measures maps layer after layer: each on what reaches it once the layers before it are static."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.observe import fixed_batch
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.segments import SegmentedRun
from edgesmith.graph.edit import GraphEditor, set_initializer
from edgesmith.graph.outputs import float_outputs
from edgesmith_calibration.sources import DataSource
from edgesmith_tokens.static.sites import Site
from edgesmith_tokens.static.statistics import MapStatistics

Array = NDArray[Any]

_HELD_OUT_EVERY = 4


def held_out(count: int) -> NDArray[np.intp]:
    """Return which of `count` samples no map is made from, by index: every fourth. Errors are those on them."""
    return np.arange(_HELD_OUT_EVERY - 1, count, _HELD_OUT_EVERY)


def judging_samples(data: DataSource, limit: int, batch: int = 1) -> DataSource:
    """Return the samples to compare outputs on, in whole batches: those held out, or all where these are too few.

    Args:
        data: The samples that the maps are measured on.
        limit: Largest number of samples; one batch is taken at least.
        batch: Samples that a run needs.
    """
    held = held_out(len(data))
    chosen = held if len(held) >= batch else np.arange(len(data))
    return data.select(chosen[: max(min(limit, len(chosen)) // batch, 1) * batch])


@dataclass(frozen=True, slots=True)
class StaticMap:
    """What takes the place of one attention layer, and what it costs on samples held out."""

    site: Site
    map: Array
    """Float32 [heads, tokens, tokens]."""
    bias: Array | None
    """[heads, tokens, channels]."""
    form: str
    """"mean" or "least-squares"."""
    similarity: float
    """How alike the maps of different samples are; 1 where they are all the same."""
    errors: Mapping[str, float]
    """Error of the layer's output relative to its size, by form."""
    mean: Array
    """The mean map, float32, whatever the form is."""

    @property
    def error(self) -> float:
        """Error of the layer's output relative to its size, of the form that is taken."""
        return self.errors[self.form]


@dataclass(frozen=True, slots=True)
class Forms:
    """How a map is made from statistics."""

    form: str
    bias: bool
    ridge: float

    def solve(self, site: Site, fitted: MapStatistics, held_out: MapStatistics) -> StaticMap:
        """Return the map of one layer.

        Args:
            site: The layer.
            fitted: Statistics that the map is made from. In the end they are those of all samples.
            held_out: Statistics that its error is taken on; without samples, those that it is made from.
        """
        judged = held_out if held_out.count else fitted
        maps = {"mean": fitted.mean_map(), "least-squares": fitted.least_squares_map(self.ridge)}
        biases = {name: fitted.bias(each) if self.bias else None for name, each in maps.items()}
        errors = {name: judged.relative_error(each, biases[name]) for name, each in maps.items()}
        chosen = min(errors, key=lambda name: errors[name]) if self.form == "best" else self.form
        fitted.absorb(held_out)
        map_, mean = maps[chosen].astype(np.float32), fitted.mean_map().astype(np.float32)
        return StaticMap(site, map_, biases[chosen], chosen, fitted.similarity, errors, mean)


def measure_maps(
    model: ir.Model,
    sites: Sequence[Site],
    data: DataSource,
    forms: Forms,
    *,
    replaced: bool,
    scratch: Path,
    batch_size: int = 1,
    threads: int = 1,
) -> Iterator[StaticMap]:
    """Yield the map of every layer. Each node runs once for each sample, and statistics of one layer are held at once.

    Args:
        model: The graph; not changed.
        sites: Layers without obstacle, in the order of the data.
        data: Calibration data.
        forms: How a map is made.
        replaced: Measure each layer behind the static maps of those before it; otherwise all as the model is.
        scratch: Folder for activations that wait.
        batch_size: Samples per run; a fixed batch stays.
        threads: Threads used inside one operator.
    """
    measured = with_maps(model, sites) if replaced else model
    # Maps need not wait in memory: what they meet is computed before the run stops, or does not read them.
    stops = [(site.maps, site.values, *(() if replaced else (site.attention.context,))) for site in sites]
    run = SegmentedRun(measured, stops, data, scratch=scratch, batch_size=batch_size, threads=threads)
    is_held = np.isin(np.arange(len(data)), held_out(len(data)))
    for site in sites:
        parts = MapStatistics(site.label), MapStatistics(site.label)
        seen = 0
        for batch in run.advance():
            maps, values = batch[site.maps], batch[site.values]
            held = is_held[seen : seen + len(maps)]
            for part, chosen in zip(parts, (~held, held), strict=True):
                part.update(maps[chosen], values[chosen])
            seen += len(maps)
        found = forms.solve(site, *parts)
        if replaced:
            _fill(measured.graph.initializers, found)
        yield found


class Verifier:
    """Measures how far outputs move when some layers are static. One session serves all choices.

    Args:
        model: The graph.
        sites: The layers that may become static.
        maps: Their maps, in the same order; read one after another, and kept in the graph alone.
        data: Samples to compare outputs on.
        batch_size: Samples per run.
        threads: Threads used inside one operator.
    """

    def __init__(
        self,
        model: ir.Model,
        sites: Sequence[Site],
        maps: Iterable[StaticMap],
        data: DataSource,
        *,
        batch_size: int = 1,
        threads: int = 1,
    ) -> None:
        gated = with_gates(model, sites)
        initializers = gated.graph.initializers
        self._gates: list[tuple[str, np.dtype[Any]]] = []
        for each in maps:
            _fill(initializers, each)
            gate = initializers.pop(_names(each.site).gate)
            gate.const_value = None
            gated.graph.inputs.append(gate)
            self._gates.append((str(gate.name), (gate.dtype or ir.DataType.FLOAT).numpy()))
        self._session = ReferenceSession(gated, optimization="all", threads=threads)
        inputs = {value.name for value in model.graph.inputs}
        self._outputs = float_outputs(model.graph)
        self._batches = [
            {name: array for name, array in batch.inputs.items() if name in inputs}
            for batch in data.batches(fixed_batch(model) or batch_size)
        ]
        self._wanted = [self._run(batch, ()) for batch in self._batches]

    def error(self, static: Collection[int]) -> float:
        """Return the root of the energy by which outputs of floats move over their own energy.

        Args:
            static: Indices of the maps that are in place.
        """
        moved = energy = 0.0
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            found = self._run(batch, static)
            for name, array in wanted.items():
                moved += float(np.square(found[name].astype(np.float64) - array).sum())
                energy += float(np.square(array.astype(np.float64)).sum())
        return float(np.sqrt(moved / energy)) if energy else 0.0

    def _run(self, batch: Mapping[str, Array], static: Collection[int]) -> dict[str, Array]:
        gates = {name: np.array(index in static, dtype) for index, (name, dtype) in enumerate(self._gates)}
        results = self._session.run({**batch, **gates})
        return {name: results[name] for name in self._outputs}


def greedy_choice(
    count: int, total: int, error: Callable[[Collection[int]], float], limit: float | None
) -> tuple[tuple[int, float], ...]:
    """Return layers one after another, each the one that moves the outputs least, with the error behind each.

    As SLEB (arXiv 2402.09025) leaves out blocks.

    Args:
        count: How many at most.
        total: How many there are.
        error: Error with some of them static.
        limit: Ends before the error is above it.
    """
    chosen: list[tuple[int, float]] = []
    while len(chosen) < min(count, total):
        taken = [index for index, _ in chosen]
        errors = {index: error((*taken, index)) for index in range(total) if index not in taken}
        best = min(errors, key=lambda index: errors[index])
        if limit is not None and errors[best] > limit:
            break
        chosen.append((best, errors[best]))
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class _Names:
    map: str
    bias: str
    gate: str


def _names(site: Site) -> _Names:
    stem = f"static/{site.attention.context}"
    return _Names(f"{stem}/map", f"{stem}/bias", f"{stem}/gate")


def with_maps(model: ir.Model, sites: Sequence[Site]) -> ir.Model:
    """Return a copy of a graph with a map and a bias of zeros in place; the maps before are still computed."""
    copy = model.clone()
    editor = GraphEditor(copy.graph)
    for site in sites:
        node, map_, bias = _constants(editor, site)
        node.replace_input_with(0, map_)
        editor.insert_on_uses(node.outputs[0], "Add", (bias,))
    return copy


def with_gates(model: ir.Model, sites: Sequence[Site]) -> ir.Model:
    """Return a copy of a graph in which the probabilities of each layer can be switched to a constant map.

    What meets the values is `gate * map + (1 - gate) * probabilities`, and `gate * bias` is added behind. Map, bias and
    gate are initializers, all zero at first, so that the copy computes what the model computes.
    """
    copy = model.clone()
    editor = GraphEditor(copy.graph)
    for site in sites:
        node, map_, bias = _constants(editor, site)
        dtype = (map_.dtype or ir.DataType.FLOAT).numpy()
        gate = editor.add_initializer(_names(site).gate, np.array(0, dtype))
        one = editor.add_initializer("static/one", np.array(1, dtype))
        rest = editor.insert_before(node, "Sub", (one, gate)).outputs[0]
        own = editor.insert_before(node, "Mul", (node.inputs[0], rest)).outputs[0]
        constant = editor.insert_before(node, "Mul", (map_, gate)).outputs[0]
        node.replace_input_with(0, editor.insert_before(node, "Add", (own, constant)).outputs[0])
        shift = editor.insert_before(node, "Mul", (bias, gate)).outputs[0]
        editor.insert_on_uses(node.outputs[0], "Add", (shift,))
    return copy


def _constants(editor: GraphEditor, site: Site) -> tuple[ir.Node, ir.Value, ir.Value]:
    """Return the product with the values, and a new map and bias of zeros in its type."""
    node = next(each for each in editor.graph if each.outputs[0].name == site.attention.context)
    types = (each.dtype for each in node.inputs if each is not None)
    dtype = next((each for each in types if each is not None), ir.DataType.FLOAT).numpy()
    names = _names(site)
    map_ = editor.add_initializer(names.map, np.zeros((1, site.heads, site.tokens, site.tokens), dtype))
    return node, map_, editor.add_initializer(names.bias, np.zeros((1, site.heads, site.tokens, site.channels), dtype))


def _fill(initializers: Mapping[str, ir.Value], static: StaticMap) -> None:
    """Give a graph with gates the map and the bias of a layer."""
    names = _names(static.site)
    for name, array in ((names.map, static.map), (names.bias, static.bias)):
        if array is not None:
            value = initializers[name]
            set_initializer(value, array[None].astype((value.dtype or ir.DataType.FLOAT).numpy()))
