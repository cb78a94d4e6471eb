"""Messages between processes: everything arrives as it was sent, and garbage is the end of the conversation."""

import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from edgesmith.host.loader import load_registry
from edgesmith.host.origin import PluginOrigin
from edgesmith.host.targets import find_target
from edgesmith.isolation.batches import pack, unpack
from edgesmith.isolation.channel import Channel, Message
from edgesmith.isolation.request import (
    SourceFacts,
    StepRequest,
    load_again,
    pack_dialect,
    unpack_dialect,
)
from edgesmith.testing import isolated_registry
from edgesmith_calibration.sources import Batch

BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second


def sent(message: Message) -> Message:
    """Return what arrives of a message at the other end."""
    first, second = socket.socketpair()
    channel = Channel(first, takes_arrays=False)
    # Larger messages than a socket buffers need somebody who reads meanwhile.
    sender = Thread(target=channel.send, args=(message,))
    sender.start()
    received = Channel(second, takes_arrays=True).receive()
    sender.join()
    channel.close()
    second.close()
    assert received is not None
    return received


@given(
    array=arrays_of.arrays(
        st.sampled_from(["f2", "f4", ">f8", "i1", "u8", "?", "U3"]), arrays_of.array_shapes(min_dims=0, min_side=0)
    )
)
def test_arrays_arrive_bit_by_bit(array: np.ndarray) -> None:
    found = sent(Message({"text": "ä"}, {"a/b c": array}))
    assert found.content == {"text": "ä"}
    assert found.arrays["a/b c"].dtype == array.dtype and found.arrays["a/b c"].shape == array.shape
    assert found.arrays["a/b c"].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4])
def test_types_beyond_numpy_arrive(dtype: type) -> None:
    array = np.arange(-4, 4).astype(dtype).reshape(2, 4)
    assert sent(Message({}, {"x": array})).arrays["x"].dtype == array.dtype
    assert sent(Message({}, {"x": array})).arrays["x"].tolist() == array.tolist()


def test_texts_and_strided_arrays_arrive() -> None:
    texts = np.array([["a", "longer"], ["", "ü"]], object)
    strided = np.arange(12).reshape(3, 4).T[::2]
    found = sent(Message({}, {"texts": texts, "strided": strided})).arrays
    assert found["texts"].dtype == object and found["texts"].tolist() == texts.tolist()
    assert np.array_equal(found["strided"], strided)
    found["strided"][0] = 7  # A method may work in place on its batch.


def test_a_large_batch_arrives_with_and_without_labels() -> None:
    inputs = {"labels": np.random.default_rng(0).normal(size=(64, 3, 64, 64)), "y": np.zeros(64)}
    for labels in (None, np.arange(64)):
        batch = unpack(sent(pack(Batch(inputs, labels))))
        assert batch is not None and list(batch.inputs) == list(inputs)
        assert all(np.array_equal(batch.inputs[name], inputs[name]) for name in inputs)
        assert (batch.labels is None) if labels is None else np.array_equal(batch.labels, labels)
    assert unpack(sent(pack(None))) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage" * 10,
        b"\xff" * 8,
        (2).to_bytes(8, "big") + b"[]",
        (4).to_bytes(8, "big") + b"\xff\xfe[]",
        (31).to_bytes(8, "big") + b'{"content": 5, "arrays": []}   ',
        (90).to_bytes(8, "big") + b'{"content": {}, "arrays": [{"name": "x", "dtype": "O", "shape": [1], "bytes": 8}]}',
    ],
)
def test_what_is_no_message_ends_the_conversation(ends: tuple[socket.socket, socket.socket], content: bytes) -> None:
    ours, theirs = ends
    theirs.sendall(content)
    theirs.shutdown(socket.SHUT_WR)
    assert Channel(ours, takes_arrays=True).receive() is None


def test_the_run_takes_no_arrays(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    Channel(theirs, takes_arrays=True).send(Message({}, {"x": np.zeros(3)}))
    assert Channel(ours, takes_arrays=False).receive() is None


@pytest.mark.parametrize("target", [record.name for record in load_registry(plugins=False).targets()])
def test_a_request_is_read_back_as_it_was_written(tmp_path: Path, target: str) -> None:
    registry = load_registry(plugins=False)
    dialect = find_target(registry, target)[1].dialect
    plugin = registry.plugin_of(registry.method("quantize-int8"))
    facts = SourceFacts(0, "data", True)
    origin = PluginOrigin.of(plugin)
    options = {"samples": 3, "shares": [0.1, 1e-300, float("inf"), float("-inf"), float("nan")], "none": None}
    packed = pack_dialect(dialect)
    request = StepRequest(
        import_path=("a",),
        plugins=(origin,),
        work="apply",
        record="edgesmith:x",
        directory="d",
        options=options,
        dialect=packed[0],
        dialect_type=packed[1],
        scratch="s",
        seed=2**32 - 1,
        threads=2,
        calibration=facts,
        source_calibration=facts,
        has_trial=True,
        metric=None,
        checkpoint="c",
    )
    request.write(tmp_path)
    # Written out, since NaN equals nothing.
    assert repr(StepRequest.read(tmp_path)) == repr(request)
    assert unpack_dialect(StepRequest.read(tmp_path)) == dialect


def test_plugins_are_loaded_again_under_the_same_names(tmp_path: Path) -> None:
    registry = load_registry(files=[BAD_PLUGINS / "raises_in_observer.py"])
    records = [registry.method("copy"), registry.method("quantize-int8"), registry.metric("accuracy")]
    origins = tuple(dict.fromkeys(PluginOrigin.of(registry.plugin_of(record)) for record in records))
    again = load_again(origins)
    for record in records:
        word = "metric" if record is records[2] else "method"
        found = getattr(again, word)(registry.qualified_name(record))
        assert found == record and again.distribution_of(found) == registry.distribution_of(record)


def test_a_plugin_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    from edgesmith.errors import PluginError

    path = tmp_path / "changing.py"
    path.write_text((BAD_PLUGINS / "raises_in_observer.py").read_text())
    registry = isolated_registry(path)
    origin = PluginOrigin.of(registry.plugins[0])
    path.write_text(path.read_text() + "\n# changed\n")
    with pytest.raises(PluginError, match="was changed while the run works with it"):
        load_again((origin,))
