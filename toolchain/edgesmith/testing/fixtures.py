"""Fixtures for tests of plugins. A project loads them in its `pyproject.toml`.

[tool.pytest.ini_options]
addopts = "-p edgesmith.testing.fixtures"
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry
    from edgesmith.model import Model


@pytest.fixture
def tiny_model() -> "Callable[[str], Model]":
    """Return a function from a name, such as "cnn" or "llama", to that tiny model (`TINY_MODELS` has the names)."""
    from edgesmith.testing.models import TINY_MODELS

    return lambda name: TINY_MODELS[name]()


@pytest.fixture
def tiny_models(tmp_path: Path) -> "dict[str, Model]":
    """Return one tiny model of each family by name, the one with external data included."""
    from edgesmith.testing import models

    return models.tiny_models(tmp_path)


@pytest.fixture
def isolated_registry() -> "Callable[..., Registry]":
    """Return the function that makes a registry of the named plugins alone."""
    from edgesmith.testing import registry

    return registry.isolated_registry


@pytest.fixture
def fake_target() -> ModuleType:
    """Return a plugin with the target `fake-target`."""
    from edgesmith.testing import fakes

    return fakes.fake_target()


@pytest.fixture
def fake_runner() -> Callable[..., ModuleType]:
    """Return a function from a table of latencies in milliseconds to a plugin with the runner `fake-runner`."""
    from edgesmith.testing import fakes

    return fakes.fake_runner


@pytest.fixture
def run_recipe(tmp_path: Path) -> "Callable[..., object]":
    """Return `edgesmith.testing.run_recipe` that writes into the folder of the test."""
    from functools import partial

    from edgesmith.testing import runs

    return partial(runs.run_recipe, out=tmp_path)
