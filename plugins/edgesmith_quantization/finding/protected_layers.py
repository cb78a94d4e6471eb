"""Finds the layers with protected places: which of their outputs and inputs stay in float, or that all of them do."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.kept import keep, kept
from edgesmith.graph.node_names import node_name
from edgesmith.graph.weight_sites import WeightSite, find_weight_sites, weight_readers
from edgesmith.host.context import Notes
from edgesmith.model import Model
from edgesmith.protection import Protection
from edgesmith_quantization.options.protected import ProtectedSelection

_MOST = 0.5
"""Where a larger part of a weight is protected, all of it stays in float, which is then faster too."""


@dataclass(frozen=True, slots=True)
class Places:
    """Protected places of one weight."""

    outputs: NDArray[np.int64]
    inputs: NDArray[np.int64]

    def share(self, outputs: int, inputs: int) -> float:
        """Return the part of a weight [outputs, inputs] that is protected."""
        return 1 - (1 - len(self.outputs) / outputs) * (1 - len(self.inputs) / inputs)


@dataclass(frozen=True, slots=True)
class ProtectedLayers:
    """The layers of a graph that hold protected places."""

    split: Mapping[str, Places]
    """First reader of each weight of which a part stays in float."""
    whole: Mapping[str, str]
    """Nodes whose weight stays in float altogether, with the reason."""
    unknown: tuple[str, ...] = ()
    """Weights that the protection names and the graph does not have."""
    known: int = 0
    """How many weights of the protection the graph has."""

    def inputs(self, site: WeightSite) -> NDArray[np.int64]:
        """Return which inputs of a weight are protected in part of a layer that is divided."""
        places = self.split.get(node_name(site.readers[0])) if site.readers else None
        return places.inputs if places is not None else np.empty(0, np.int64)

    def remark(self, notes: Notes) -> None:
        """Say what stays in float altogether, and what the graph does not have."""
        if self.whole:
            notes.remark(f"Protected: {len(self.whole)} layers stay in float altogether, as their reasons say.")
        if self.unknown:
            total = len(self.unknown) + self.known
            notes.remark(
                f"Protected: the model does not have {len(self.unknown)} of the {total} weights that the protection "
                f"names, such as {self.unknown[0]}; nothing is protected there."
            )

    def mark(self, graph: ir.Graph) -> None:
        """Keep every method from changing the weights that stay in float altogether. Edits the graph."""
        for node in graph:
            if node_name(node) in self.whole:
                keep(node, self.whole[node_name(node)])


def find_protected(model: Model, options: ProtectedSelection) -> ProtectedLayers:
    """Return what the option `protect` names of the layers that the options select.

    Raises:
        RecipeError: There is no such protection, or it was made for another model.
    """
    protection = Protection.chosen(options.protect, model.assets)
    named = {value.name or "" for node in model.graph if node.op_type == "Constant" for value in node.outputs}
    named |= set(model.graph.initializers)
    protection.require_known(named)
    unknown = protection.unknown(named)
    split: dict[str, Places] = {}
    whole: dict[str, str] = {}
    notes = Notes()
    sites = find_weight_sites(model.graph, options.obstacle, notes.skip) if protection.weights else ()
    for site in sites:
        places = _places(site, protection)
        if places is None:
            continue
        reason = _whole(site, places)
        if reason:
            whole |= dict.fromkeys(map(node_name, site.nodes), reason)
        else:
            split[node_name(site.readers[0])] = places
    divisible = {site.weight for site in sites}
    for weight, nodes in weight_readers(model.graph).items():
        names = {node_name(node) for node in nodes if not kept(node)}
        if weight in divisible or all(map(options.obstacle, names)) or not _is_protected(weight, protection):
            continue
        for name in names:
            why = notes.skipped.get(name, "it is read in another form")
            whole[name] = f"part of its weight is protected and cannot be divided: {why}"
    return ProtectedLayers(split, whole, unknown, len(protection.weights) - len(unknown))


def marked(model: Model, options: ProtectedSelection) -> Model:
    """Return the model with the marks of `ProtectedLayers`: a copy, or itself where nothing is protected.

    Raises:
        RecipeError: There is no such protection, or it was made for another model.
    """
    if options.protect is None:
        return model
    result = model.clone()
    find_protected(model, options).mark(result.graph)
    return result


def _is_protected(weight: ir.Value, protection: Protection) -> bool:
    tensor = constant_tensor(weight)
    shape = () if tensor is None else tuple(tensor.shape.numpy())
    return any(protection.places(weight.name or "", axis, size) for axis, size in enumerate(shape))


def _places(site: WeightSite, protection: Protection) -> Places | None:
    found = [
        np.array(sorted(protection.places(site.name, axis, site.shape[axis])), np.int64)
        for axis in (site.output_axis, site.input_axis)
    ]
    return Places(*found) if any(len(each) for each in found) else None


def _whole(site: WeightSite, places: Places) -> str:
    """Return why all of a weight stays in float, or an empty string."""
    share = places.share(site.shape[site.output_axis], site.shape[site.input_axis])
    said = f"{share:.1%} of its weight is protected"
    if site.gathers:
        return f"{said}, and tables are not divided"
    if any(node.op_type == "Conv" for node in site.readers):
        return f"{said}, and convolutions are not divided"
    if share > _MOST:
        return f"{said}, which is more than half"
    if any(node.op_type == "Gemm" and not _is_plain(node, site) for node in site.readers):
        return f"{said}, and its Gemm transposes, scales or adds more than one number for each output"
    return ""


def _is_plain(node: ir.Node, site: WeightSite) -> bool:
    scaled = any(node.attributes.get_float(key, 1.0) != 1 for key in ("alpha", "beta"))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    tensor = constant_tensor(bias)
    fits = bias is None or (tensor is not None and prod(tensor.shape.numpy()) == site.shape[site.output_axis])
    return fits and not scaled and not node.attributes.get_int("transA", 0)
