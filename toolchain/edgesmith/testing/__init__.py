"""Tools for testing plugins. Nothing here discovers what is installed.

registry = isolated_registry("my_plugin.py")
result = run_method(registry, "my-method", tiny_mlp())
artifact = run_recipe(registry, tiny_bert(), ["my-method"], out=tmp_path)
checks = conformance(registry, "my-method")

Fixtures for pytest stand in `edgesmith.testing.fixtures`.
"""

from edgesmith.testing.builder import GraphBuilder
from edgesmith.testing.conformance import Check, CheckResult, conformance
from edgesmith.testing.data import tiny_data
from edgesmith.testing.fakes import bare_dialect, fake_dialect, fake_runner, fake_target
from edgesmith.testing.models import (
    TINY_MODELS,
    tiny_bare,
    tiny_bert,
    tiny_branches,
    tiny_cnn,
    tiny_dynamic,
    tiny_external,
    tiny_gpt,
    tiny_llama,
    tiny_mlp,
    tiny_models,
    tiny_quantized,
    tiny_vit,
)
from edgesmith.testing.registry import isolated_registry, run_method
from edgesmith.testing.runs import run_recipe

__all__ = [
    "TINY_MODELS",
    "Check",
    "CheckResult",
    "GraphBuilder",
    "bare_dialect",
    "conformance",
    "fake_dialect",
    "fake_runner",
    "fake_target",
    "isolated_registry",
    "run_method",
    "run_recipe",
    "tiny_bare",
    "tiny_bert",
    "tiny_branches",
    "tiny_cnn",
    "tiny_data",
    "tiny_dynamic",
    "tiny_external",
    "tiny_gpt",
    "tiny_llama",
    "tiny_mlp",
    "tiny_models",
    "tiny_quantized",
    "tiny_vit",
]
