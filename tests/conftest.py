"""Fixtures for every test: small random models, each exported once and then read from disk."""

import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a worker for each core, and threads that wait for a core spin. Libraries read this when imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs tests in the background has them ignore Ctrl-C, and so would each process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import models
from edgesmith.measure import local
from edgesmith.measure.memory import ChildMemory, measure_in_child
from edgesmith.model import Model

# How long an example takes is a matter of the machine. Where CI is set, hypothesis takes its own profile "ci", which
# also draws the same examples each time.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if settings.get_current_profile_name() == "default":
    settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def store_of_tests() -> Iterator[None]:
    """Keep what the host learns about the plugins of tests out of the user's cache."""
    with tempfile.TemporaryDirectory(prefix="edgesmith-tests-") as folder, pytest.MonkeyPatch.context() as patch:
        if "EDGESMITH_STORE" not in os.environ:
            patch.setenv("EDGESMITH_STORE", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def memory_measured_once() -> Iterator[None]:
    """Measure the memory of a model file on the same inputs once, whichever test asks first.

    Most compiles of tests are of the same few models. The tests of the measurement itself do without this.
    """
    found: dict[bytes, ChildMemory] = {}

    def measured(entry: Path, inputs: Mapping[str, Any], *plan: Any, **settings: Any) -> ChildMemory:
        files = [path.read_bytes() for path in sorted(entry.parent.iterdir()) if path.name.startswith(entry.name)]
        arrays = [(name, array.dtype.str, array.shape, array.tobytes()) for name, array in inputs.items()]
        key = hashlib.sha256(repr((files, arrays, plan, settings)).encode()).digest()
        if key not in found:
            found[key] = measure_in_child(entry, inputs, *plan, **settings)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "measure_in_child", measured)
        yield


@pytest.fixture(scope="session")
def tiny_bert() -> Model:
    """Encoder with a classifier; inputs input_ids, attention_mask, token_type_ids."""
    return models.cached_model("tiny-bert", lambda: models.export_module(models.tiny_bert_module()))


@pytest.fixture(scope="session")
def tiny_distilbert() -> Model:
    """Encoder with a masked language model head tied to the embeddings."""
    return models.cached_model("tiny-distilbert", lambda: models.export_module(models.tiny_distilbert_module()))


@pytest.fixture(scope="session")
def tiny_vit() -> Model:
    """Vision transformer with a classifier; input pixel_values 3 x 32 x 32."""
    return models.cached_model("tiny-vit", lambda: models.export_module(models.tiny_vit_module()))


@pytest.fixture(scope="session")
def tiny_dinov2() -> Model:
    """Vision transformer with layer scale; features."""
    return models.cached_model("tiny-dinov2", lambda: models.export_module(models.tiny_dinov2_module()))


@pytest.fixture(scope="session")
def tiny_gpt2() -> Model:
    """Decoder with one product for q, k and v, and a tied head."""
    return models.cached_model("tiny-gpt2", lambda: models.export_module(models.tiny_gpt2_module()))


@pytest.fixture(scope="session")
def tiny_llama() -> Model:
    """Decoder with grouped queries, gated MLPs and rotary positions."""
    return models.cached_model("tiny-llama", lambda: models.export_module(models.tiny_llama_module()))


@pytest.fixture(scope="session")
def tiny_cnn() -> Model:
    """Residual network with a depthwise convolution; input image 3 x 16 x 16."""
    return models.cached_model("tiny-cnn", models.build_tiny_cnn)
