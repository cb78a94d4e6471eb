"""From a torch module to a graph: a quiet call of the dynamo exporter, with its failures in plain words."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import NameFixPass

from edgesmith.errors import ModelError, UnsupportedOperatorError

if TYPE_CHECKING:
    import torch

EXPORT_OPSET = 20
DynamicAxes = Mapping[str, Mapping[int, str]]
"""Input name to axis to the name of that dynamic dimension. Equal names mean equal sizes."""

_KEPT_METADATA = frozenset({"pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"})
_MISSING_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes into a module and comes out of it, by name."""

    inputs: Mapping[str, "torch.Tensor"]
    positional: bool
    """Whether `forward` gets the inputs by position; names then only serve the graph."""
    dynamic_axes: DynamicAxes


def call_module(module: "torch.nn.Module", signature: Signature, inputs: Mapping[str, "torch.Tensor"]) -> Any:
    """Return what `module` returns for `inputs`, without gradients."""
    import torch

    with torch.no_grad():
        return module(*inputs.values()) if signature.positional else module(**inputs)


def name_outputs(result: object, prefix: str = "output") -> dict[str, "torch.Tensor"]:
    """Return the tensors inside what a module returned, by name: dictionary keys, field names, or positions.

    Raises:
        ModelError: It holds something that no graph can return.
    """
    import torch

    if result is None:
        return {}
    if isinstance(result, torch.Tensor):
        return {prefix: result}
    top = prefix == "output"
    named: dict[str, torch.Tensor] = {}
    if isinstance(result, Mapping):
        for key, value in result.items():
            named |= name_outputs(value, str(key) if top else f"{prefix}.{key}")
        return named
    if isinstance(result, tuple | list):
        fields: Sequence[str] = getattr(result, "_fields", [str(i) for i in range(len(result))])
        joined = "" if top and hasattr(result, "_fields") else f"{prefix}_"
        for key, value in zip(fields, result, strict=True):
            named |= name_outputs(value, f"{joined}{key}")
        return named
    raise ModelError(
        f"The module returns a {type(result).__name__} as `{prefix}`.",
        expected="tensors, or tuples and dictionaries of tensors",
        why="A graph has named tensors as outputs and nothing else.",
        fix="Wrap the module in one whose forward returns tensors.",
    )


def export_module(module: "torch.nn.Module", signature: Signature, outputs: Sequence[str], what: str) -> ir.Model:
    """Return the graph of `module`, which must be on the CPU and in evaluation mode.

    Weights are shared with the module. Nothing is printed or logged.

    Raises:
        ModelError: torch cannot trace the module.
        UnsupportedOperatorError: An operator has no ONNX form; the message names the first one.
    """
    import torch

    axes = {name: dict(signature.dynamic_axes.get(name, {})) or None for name in signature.inputs}
    call: dict[str, Any] = (
        {"args": tuple(signature.inputs.values()), "dynamic_shapes": tuple(axes.values())}
        if signature.positional
        else {"args": (), "kwargs": dict(signature.inputs), "dynamic_shapes": axes}
    )
    try:
        # The tracer prints the graph it gave up on to stderr, past every logger.
        with quiet(), redirect_stderr(StringIO()):
            program = torch.onnx.export(
                module,
                **call,
                dynamo=True,
                opset_version=EXPORT_OPSET,
                input_names=list(signature.inputs),
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise _explain(error, what) from error
    if program is None:
        raise _untraceable(what, "the exporter returned nothing")
    graph: ir.Model = program.model
    _set_output_names(graph, outputs)
    _own_tensors(graph)
    _drop_metadata(graph)
    return graph


def to_numpy(tensor: "torch.Tensor") -> NDArray[Any]:
    """Return a tensor as an array, bfloat16 included."""
    return ir.tensor(tensor.detach().cpu()).numpy()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence logging and warnings of the libraries below us while the block runs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _set_output_names(model: ir.Model, names: Sequence[str]) -> None:
    """Name the outputs. The exporter would rename an input that is also an output, so those get a node of their own."""
    graph = model.graph
    taken = {value.name for value in graph.inputs}
    seen: set[ir.Value] = set()
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        if value.is_graph_input() or value.is_initializer() or value in seen:
            node = ir.node("Identity", [value])
            graph.append(node)
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.outputs[index] = value = node.outputs[0]
        seen.add(value)
        value.name = f"{name}_output" if name in taken else name
    NameFixPass()(model)


def _own_tensors(model: ir.Model) -> None:
    """Replace the exporter's tensor adapters by plain arrays, so that a graph needs no torch to be read."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            value.const_value = ir.Tensor(np.asarray(tensor.numpy()), tensor.dtype, name=value.name)


def _drop_metadata(model: ir.Model) -> None:
    """Keep where a node comes from in the module; drop stack traces, which hold paths of the exporting machine."""
    model.doc_string = None
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
        for node in graph:
            node.doc_string = None
            for key in [key for key in node.metadata_props if key not in _KEPT_METADATA]:
                del node.metadata_props[key]
            for value in node.outputs:
                value.metadata_props.clear()


def _explain(error: BaseException, what: str) -> ModelError:
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        if found := _MISSING_OPERATOR.search(str(cause)):
            return UnsupportedOperatorError(
                f"`{what}` uses the operator `{found[1]}`, which has no ONNX form.",
                expected="operators that torch's ONNX exporter can write",
                why="A graph without it would compute something else.",
                fix="Replace it in the module, or move that part out of the model.",
            )
    lines = (line.strip() for line in str(causes[-1]).splitlines())
    return _untraceable(what, next((line for line in lines if line), type(causes[-1]).__name__))


def _untraceable(what: str, reason: str) -> ModelError:
    return ModelError(
        f"`{what}` cannot be traced by torch.export: {reason[:400]}",
        expected="a module whose control flow does not depend on the values of tensors",
        why="Without a trace there is no graph.",
        fix="Change the module as the message says, or export it to ONNX yourself and pass the file.",
    )
