"""Fixtures of the measurement tests."""

from pathlib import Path

import numpy as np
import pytest
from measure_models import ArrayData, dense_model

from edgesmith.measure import local
from edgesmith.measure.memory import measure_in_child


@pytest.fixture(autouse=True)
def memory_measured_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "measure_in_child", measure_in_child)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return dense_model(tmp_path / "small.onnx")


@pytest.fixture
def data() -> ArrayData:
    random = np.random.default_rng(1)
    return ArrayData(random.normal(size=(70, 16)).astype(np.float32), random.integers(0, 16, size=70))
