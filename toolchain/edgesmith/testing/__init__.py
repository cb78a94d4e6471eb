"""Tools for testing plugins. Nothing here discovers what is installed.

registry = isolated_registry("my_plugin.py")
result = run_method(registry, "my-method", tiny_mlp())
"""

from edgesmith.testing.models import tiny_mlp
from edgesmith.testing.registry import fake_dialect, isolated_registry, run_method

__all__ = ["fake_dialect", "isolated_registry", "run_method", "tiny_mlp"]
