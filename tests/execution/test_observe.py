"""Statistics of inner values over calibration data."""

from threading import Barrier, get_ident

import numpy as np
import pytest

import edgesmith.execution.observe as module
from edgesmith.errors import DataError, ModelError
from edgesmith.execution.observe import observe
from edgesmith.execution.reference import ReferenceSession
from edgesmith.progress import SilentProgress
from edgesmith_calibration.observers import HistogramObserver, MeanVarianceObserver, MinMaxObserver
from edgesmith_calibration.sources import ArraySource, IterableSource
from small_graphs import graph, node

DATA = np.random.default_rng(0).normal(0, 1, (10, 4)).astype(np.float32)


def model(batch="n"):
    nodes = [node("Relu", ["x"], "positive"), node("Mul", ["positive", "two"], "y")]
    return graph(nodes, {"two": np.float32(2)}, {"x": [batch, 4]}).ir


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_inputs_inner_values_and_outputs(batch_size):
    seen = observe(model(), ["x", "positive", "y"], ArraySource({"x": DATA}), MinMaxObserver, batch_size=batch_size)
    assert (float(seen["x"].low), float(seen["x"].high)) == (DATA.min(), DATA.max())
    assert (float(seen["positive"].low), float(seen["positive"].high)) == (0, DATA.max())
    assert float(seen["y"].high) == 2 * DATA.max()
    assert seen["y"].count == DATA.size


def test_any_observer_is_taken():
    seen = observe(model(), ["x"], ArraySource({"x": DATA}), MeanVarianceObserver)
    np.testing.assert_allclose(seen["x"].mean, DATA.mean(), rtol=1e-6)
    assert observe(model(), ["y"], ArraySource({"x": DATA}), HistogramObserver)["y"].count == DATA.size


@pytest.mark.parametrize("threads", [1, 2])
def test_so_many_observers_are_updated_at_a_time_and_see_the_same(threads):
    together, meeting = [], Barrier(threads)

    class Meeting(MeanVarianceObserver):
        def update(self, array):
            meeting.wait(timeout=30)  # ends only where so many are here at once
            together.append(get_ident())
            super().update(array)

    names, data = ["x", "y"], ArraySource({"x": DATA})
    seen = observe(model(), names, data, Meeting, threads=threads, batch_size=5)
    assert len(set(together)) == threads
    alone = observe(model(), names, data, MeanVarianceObserver, batch_size=5)
    for name in names:
        assert (seen[name].mean, seen[name].variance) == (alone[name].mean, alone[name].variance)


def test_an_observer_that_fails_ends_the_pass_by_its_own_error():
    class Failing(MinMaxObserver):
        def update(self, array):
            raise DataError(self.name, expected="", why="", fix="")

    with pytest.raises(DataError) as caught:
        observe(model(), ["y", "x"], ArraySource({"x": DATA}), Failing, threads=2)
    assert caught.value.what == "y"


def test_fixed_batch_is_kept():
    assert observe(model(batch=2), ["y"], ArraySource({"x": DATA}), MinMaxObserver, batch_size=5)["y"].count == 40


def test_arrays_that_the_graph_does_not_read_are_ignored():
    source = ArraySource({"x": DATA, "spare": DATA})
    assert observe(model(), ["y"], source, MinMaxObserver)["y"].count == DATA.size


def test_each_batch_is_reported():
    class Counting(SilentProgress):
        batches = 0

        def track(self, items, description, total=None):
            assert total == 4
            for item in items:
                self.batches += 1
                yield item

    progress = Counting()
    observe(model(), ["y"], ArraySource({"x": DATA}), MinMaxObserver, batch_size=3, progress=progress)
    assert progress.batches == 4


def test_infinite_values_name_the_tensor():
    nodes = [node("Reciprocal", ["x"], "inverse"), node("Relu", ["inverse"], "y")]
    dividing = graph(nodes, {}, {"x": ["n", 4]}).ir
    with pytest.raises(DataError, match=r"'inverse'.*infinity"):
        observe(dividing, ["inverse"], ArraySource({"x": np.zeros((2, 4), np.float32)}), MinMaxObserver)


def test_no_data_unknown_values_and_missing_inputs_are_refused():
    with pytest.raises(DataError, match="no samples"):
        observe(model(), ["y"], ArraySource({"x": DATA}).take(0), MinMaxObserver)
    with pytest.raises(ModelError, match="nowhere"):
        observe(model(), ["nowhere"], ArraySource({"x": DATA}), MinMaxObserver)
    with pytest.raises(DataError, match="missing"):
        observe(model(), ["y"], ArraySource({"z": DATA}), MinMaxObserver)


class Sizes(MinMaxObserver):
    """Remembers how many samples each update held."""

    def __init__(self, name):
        super().__init__(name)
        self.sizes = []

    def update(self, array):
        self.sizes.append(len(array))
        super().update(array)


@pytest.mark.parametrize(("room", "sizes"), [(1, [1] * 10), (3, [1, 3, 3, 3]), (4, [1, 4, 4, 1]), (99, [1, 9])])
def test_as_many_samples_as_fit_run_together(monkeypatch, room, sizes):
    monkeypatch.setattr("edgesmith.execution.observe._OBSERVED_BYTES", room * DATA[0].nbytes)
    seen = observe(model(), ["y"], ArraySource({"x": DATA}), Sizes)["y"]
    assert seen.sizes == sizes
    assert (float(seen.low), float(seen.high)) == (0, 2 * DATA.max())


def test_samples_of_different_shapes_run_apart():
    samples = [{"x": np.ones((length, 4), np.float32)} for length in (3, 3, 3, 2, 5, 5)]
    long = graph([node("Mul", ["x", "two"], "y")], {"two": np.float32(2)}, {"x": ["n", "length", 4]}).ir
    seen = observe(long, ["y"], IterableSource(samples), Sizes)["y"]
    assert seen.sizes == [1, 2, 1, 2]
    assert seen.count == 4 * sum(len(sample["x"]) for sample in samples)


def test_memory_is_kept_from_run_to_run_and_values_are_the_same(monkeypatch):
    opened = []

    class Remembered(ReferenceSession):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            opened.append(self._session.get_session_options())

    monkeypatch.setattr(module, "ReferenceSession", Remembered)
    observe(model(), ["positive"], ArraySource({"x": DATA}), MinMaxObserver)
    assert [options.enable_cpu_mem_arena for options in opened] == [True]
    plain, pooled = (ReferenceSession(model(), taps=["positive"], pool=pool) for pool in (False, True))
    assert not plain._session.get_session_options().enable_cpu_mem_arena
    for rows in (DATA, DATA[:3], DATA):
        found, expected = pooled.run({"x": rows}), plain.run({"x": rows})
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_what_only_outputs_need_is_not_computed():
    """The output cannot be computed: four numbers do not fill rows of seven."""
    nodes = [node("Relu", ["x"], "positive"), node("Reshape", ["positive", "sevens"], "y")]
    failing = graph(nodes, {"sevens": np.array([-1, 7], np.int64)}, {"x": ["n", 4]}).ir
    assert observe(failing, ["positive"], ArraySource({"x": DATA}), MinMaxObserver)["positive"].count == DATA.size
    with pytest.raises(ModelError, match="Reshape"):
        observe(failing, ["y"], ArraySource({"x": DATA[:1]}), MinMaxObserver)
