"""Model: a graph with its task and its provenance, loaded safely and saved atomically."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from edgesmith.task import Task


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a Model comes from."""

    source: str
    """What the user named: a path, a hub id, or the class of a module."""
    frontend: str
    digest: str
    """Hash of the source's content."""
    steps: tuple[str, ...] = ()
    """Steps applied since, each as "name version"."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries that produced the graph."""


@dataclass(frozen=True, slots=True)
class Model:
    """The one intermediate representation: an `onnx_ir` graph, what it is for, and where it comes from.

    A Model is a value: methods return new ones and never edit `ir` in place. Use `clone` to start a rewrite.
    """

    ir: ir.Model
    task: Task
    provenance: Provenance
    assets: Mapping[str, bytes] = field(default_factory=dict)
    """Files that preprocessing needs (tokenizer and so on), by plain file name."""

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.ir.graph

    def clone(self) -> "Model":
        """Return a Model whose graph can be edited freely. Weight arrays are shared until replaced."""
        return replace(self, ir=self.ir.clone())

    def with_ir(self, graph: ir.Model) -> "Model":
        """Return this Model around another graph."""
        return replace(self, ir=graph)

    def metadata(self) -> dict[str, Any]:
        """Return task and provenance as JSON data."""
        raise NotImplementedError
