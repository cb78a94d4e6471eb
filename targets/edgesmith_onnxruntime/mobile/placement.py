"""How much of a graph the providers of phones take: the usability check of ONNX Runtime's mobile tools, as records.

The tools count which nodes a provider lists as supported and into how many parts that cuts the graph. They look at
operators, ranks and whether shapes are fixed, and run nothing: a provider may still refuse a node for its attributes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.node_names import node_name

_KEPT_BYTES = 1024
"""Constants up to this size stay in what the tools see. They look at no weight."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What one provider takes of a graph."""

    provider: str
    advice: str
    """yes, maybe or no: whether the tools advise to use this provider."""
    nodes: int
    supported: int
    partitions: int
    unsupported: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Operator that the provider does not list to the names of its nodes."""
    open_shapes: int = 0
    """Nodes that are out because a shape before them is open."""
    high_rank: int = 0
    """Nodes that are out because of too many dimensions."""

    def as_json(self) -> dict[str, object]:
        """Return it for the manifest."""
        return {
            "provider": self.provider,
            "advice": self.advice,
            "nodes": self.nodes,
            "supported": self.supported,
            "partitions": self.partitions,
            "unsupported": {operator: len(names) for operator, names in self.unsupported.items()},
            "open_shapes": self.open_shapes,
            "high_rank": self.high_rank,
        }


def find_placements(model: ir.Model) -> tuple[Placement, ...]:
    """Return what NNAPI and both forms of Core ML take of the graph."""
    return tuple(find_placement(model, provider) for provider in ("NNAPI", "Core ML neural network", "Core ML program"))


def find_placement(model: ir.Model, provider: str) -> Placement:
    """Return what one provider takes: "NNAPI", "Core ML neural network" or "Core ML program"."""
    proto = ir.to_proto(_without_weights(model))
    if not proto.graph.value_info:
        # No value between nodes has a known shape. Without any entry the tools would end, instead of counting these.
        proto.graph.value_info.extend(proto.graph.output)
    info = _check(provider)(proto)
    absent: dict[str, list[str]] = {}
    for node in model.graph.all_nodes():
        operator = f"{node.domain or 'ai.onnx'}:{node.op_type}"
        if operator in info.unsupported_ops:
            absent.setdefault(operator.removeprefix("ai.onnx:"), []).append(node_name(node))
    return Placement(
        provider=provider,
        advice=info.suitability().name.lower() if info.num_nodes else "no",
        nodes=info.num_nodes,
        supported=info.num_supported_nodes,
        partitions=info.num_partitions,
        unsupported={operator: tuple(names) for operator, names in sorted(absent.items())},
        open_shapes=info.nodes_unsupported_due_to_dynamic_input,
        high_rank=info.num_unsupported_nodes_due_to_rank,
    )


def _check(provider: str) -> Callable[[Any], Any]:
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    if provider == "NNAPI":
        return lambda proto: checker.check_nnapi_partitions(proto, require_fixed_input_sizes=True)
    form = "mlprogram" if provider == "Core ML program" else "neuralnetwork"
    return lambda proto: checker.check_coreml_partitions(proto, True, f"coreml_supported_{form}_ops.md")


def _without_weights(model: ir.Model) -> ir.Model:
    """Return a copy whose large constants are inputs of their shape, so that nothing large is written out."""
    copy = model.clone()
    for value in list(copy.graph.initializers.values()):
        tensor = constant_tensor(value)
        if tensor is not None and tensor.nbytes > _KEPT_BYTES:
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            value.const_value = None
            del copy.graph.initializers[str(value.name)]
            copy.graph.inputs.append(value)
    return copy
