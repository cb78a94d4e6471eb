"""Records of the calibration package import neither numpy nor anything else that is slow."""

import subprocess
import sys

import pytest

HEAVY = {"numpy", "PIL", "tokenizers", "yaml", "torch", "onnx", "onnxruntime", "transformers", "edgesmith"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("module", ["errors", "preprocessing", "spec"])
def test_records_are_light(module):
    assert not modules_after(f"import edgesmith_calibration.{module}") & HEAVY


@pytest.mark.parametrize("module", ["sources", "observers", "ranges", "metrics", "checked", "opening"])
def test_the_rest_needs_numpy_and_knows_nothing_of_the_core(module):
    loaded = modules_after(f"import edgesmith_calibration.{module}") & HEAVY
    assert loaded == {"numpy"}
