"""The state of a training on disk: whole or not at all, readable without running anything."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgesmith.files import replace_directory

_FILE = "state.safetensors"
_FACTS = "facts"


class Checkpoint:
    """A directory with the latest state.

    Args:
        directory: Where it is kept; None keeps nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, float | int]) -> None:
        """Replace the state before by this one. A run killed meanwhile leaves the one before.

        Raises:
            OutputError: It cannot be written.
        """
        if self._directory is None:
            return
        with replace_directory(self._directory) as partial:
            whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            save_file(whole, partial / _FILE, metadata={_FACTS: json.dumps(dict(facts))})

    def load(self) -> tuple[dict[str, Tensor], dict[str, float | int]] | None:
        """Return the latest state, or None where there is none that can be read."""
        if self._directory is None or not (self._directory / _FILE).is_file():
            return None
        try:
            with safe_open(self._directory / _FILE, framework="pt") as file:
                facts = json.loads(file.metadata()[_FACTS])
                return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            return None
