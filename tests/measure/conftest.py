"""Fixtures of the measurement tests."""

from pathlib import Path

import numpy as np
import pytest
from measure_models import ArrayData, dense_model


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return dense_model(tmp_path / "small.onnx")


@pytest.fixture
def data() -> ArrayData:
    random = np.random.default_rng(1)
    return ArrayData(random.normal(size=(70, 16)).astype(np.float32), random.integers(0, 16, size=70))
