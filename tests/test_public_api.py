"""The public names: complete, importable, documented, and light until they are used."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import edgesmith

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "numpy")


@pytest.mark.parametrize("name", edgesmith.__all__)
def test_each_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(edgesmith, name)
    assert isinstance(value, str) or (value.__doc__ or "").strip()


def test_nothing_else_is_public() -> None:
    assert set(dir(edgesmith)) == set(edgesmith.__all__)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = edgesmith.missing


def test_importing_the_host_imports_nothing_heavy() -> None:
    code = "import sys, edgesmith, edgesmith.cli, edgesmith.host.loader as l; l.load_registry().methods();"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_every_module_has_a_docstring() -> None:
    bare = []
    for package in ("edgesmith", "edgesmith_calibration", "edgesmith_quantization", "edgesmith_onnxruntime"):
        root = importlib.import_module(package)
        for info in pkgutil.walk_packages(root.__path__, f"{package}."):
            if info.name.endswith("__main__"):
                continue
            if not (importlib.import_module(info.name).__doc__ or "").strip():
                bare.append(info.name)
    assert bare == []
