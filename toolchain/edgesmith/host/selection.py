"""The options that say which nodes a method may touch."""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import onnx_ir

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")


class Selection(BaseModel):
    """Which nodes a method may touch, by name. Options of methods extend it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    only: tuple[str, ...] = Field(
        default=(),
        description="Names of the only nodes to change; empty means all. `*` and `?` match as in file names.",
    )
    skip: tuple[str, ...] = Field(
        default=(), description="Names of nodes to leave as they are; `*` and `?` match as in file names."
    )

    def obstacle(self, name: str) -> str:
        """Return why the node of that name is not selected, or an empty string."""
        if any(fnmatchcase(name, pattern) for pattern in self.skip):
            return "named in the option skip"
        if self.only and not any(fnmatchcase(name, pattern) for pattern in self.only):
            return "not named in the option only"
        return ""


def unmatched_names(graph: "onnx_ir.Graph", selection: Selection) -> str:
    """Return which patterns of `only` and `skip` name no node, with the names of near ones, or an empty string."""
    problems = (_unmatched(graph, option, getattr(selection, option)) for option in ("only", "skip"))
    return "; ".join(filter(None, problems))


def _unmatched(graph: "onnx_ir.Graph", option: str, patterns: Sequence[str]) -> str:
    from edgesmith.graph.node_names import node_name

    names = [node_name(node) for node in graph.all_nodes()]
    products = [node_name(node) for node in graph.all_nodes() if node.op_type in _PRODUCTS]
    problems = []
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        plain = pattern.strip("*?")
        near = [name for name in names if plain and plain.lower() in name.lower()]
        near = near or get_close_matches(pattern, names) or products
        problems.append(f"the option {option} names {pattern!r}, which no node matches (near: {', '.join(near[:3])})")
    return "; ".join(problems)
