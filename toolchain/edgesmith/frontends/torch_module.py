"""The frontend for `torch.nn.Module` objects with example inputs."""

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgesmith.errors import ModelError, UnsupportedOperatorError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.frontends.equality import find_difference
from edgesmith.frontends.normalize import normalize_with_remarks
from edgesmith.frontends.torch_export import (
    DynamicAxes,
    Signature,
    call_module,
    export_module,
    name_outputs,
    to_numpy,
)
from edgesmith.host.interfaces import Frontend
from edgesmith.measure.machine import library_versions
from edgesmith.model import Model, Provenance
from edgesmith.serialization import check_weights
from edgesmith.task import Task

if TYPE_CHECKING:
    import torch

_CHECKED_BATCH = 3
_WEIGHT_SUFFIXES = (".pt", ".pth")


class TorchModuleFrontend(Frontend):
    """Exports a module, with a dynamic batch axis, and proves that the graph computes what the module computes."""

    def accepts(self, source: object) -> bool:
        """Return whether `source` is an `nn.Module`, or names a weight file, which `load` refuses with advice.

        Does not import torch: without it there is no module.
        """
        if isinstance(source, str | Path):
            return Path(source).suffix in _WEIGHT_SUFFIXES and not Path(source).is_dir()
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(source, torch.nn.Module)

    def load(self, source: object, *, example_inputs: object = None, dynamic_axes: DynamicAxes | None = None) -> Model:
        """Return the Model of a module. The module is left as it was, and the Model shares no memory with it.

        Args:
            source: The module, on the CPU.
            example_inputs: A tensor, a tuple of tensors (by position), or a dictionary (by name).
            dynamic_axes: Input name to axis to dimension name. The default makes axis 0 of every input that is as
                long as the first input's the dimension "batch", or nothing dynamic where torch cannot do that.

        Raises:
            ModelError: The inputs do not fit, the module cannot be exported, or the graph computes something else.
        """
        import torch

        if not isinstance(source, torch.nn.Module):
            raise _no_module(source)
        what = type(source).__name__
        _require_cpu(source, what)
        signature = _read_signature(source, example_inputs, dynamic_axes, what)
        remarks: tuple[str, ...] = ()
        with _evaluating(source):
            outputs = list(name_outputs(_call(source, signature, signature.inputs, what)))
            try:
                graph = export_module(source, signature, outputs, what)
            except UnsupportedOperatorError:
                raise
            except ModelError:
                if dynamic_axes is not None or not signature.dynamic_axes:
                    raise
                signature = Signature(signature.inputs, signature.positional, {})
                graph = export_module(source, signature, outputs, what)
                remarks = ("The batch size is fixed: torch.export could not make it dynamic.",)
            _copy_weights(graph)
            check_weights(graph, what)
            normalized = normalize_with_remarks(graph)
            prove_export(source, signature, _cases(signature), normalized.model, what)
        digest = self.fingerprint(source, example_inputs=example_inputs)
        provenance = Provenance(
            f"{type(source).__module__}.{type(source).__qualname__}",
            "torch",
            digest,
            versions=library_versions(("torch", "onnxscript", "onnx_ir", "onnx")),
            remarks=remarks + normalized.remarks,
        )
        return Model(normalized.model, Task(), provenance)

    def fingerprint(self, source: object, *, example_inputs: object = None) -> str:
        """Return a hash of the module's weights, structure and code, and of the shapes of the example inputs."""
        import torch

        if not isinstance(source, torch.nn.Module):
            raise _no_module(source)
        total = hashlib.sha256(repr(source).encode())
        for kind in sorted(
            {type(child) for child in source.modules()}, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"
        ):
            total.update(f"{kind.__module__}.{kind.__qualname__}\n{_source_code(kind)}\n".encode())
        for name, tensor in sorted((*source.named_parameters(), *source.named_buffers())):
            total.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}\n".encode())
            total.update(np.ascontiguousarray(to_numpy(tensor)).reshape(-1).view(np.uint8).data)
        for name, tensor in _tensors_in(example_inputs):
            total.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}\n".encode())
        return total.hexdigest()


def _no_module(source: object) -> ModelError:
    found = f"`{source}`" if isinstance(source, str | Path) else f"An object of type {type(source).__name__}"
    return ModelError(
        f"{found} is not an nn.Module{' but a file of PyTorch weights' if isinstance(source, str | Path) else ''}.",
        expected="an nn.Module in Python, a Hugging Face directory or hub id, or an .onnx file",
        why="Weights alone do not say what the network computes, and unpickling a file can run any code.",
        fix="Build the module in Python, load its weights, and call "
        "`edgesmith.compile(module, example_inputs=..., out=...)`.",
    )


def prove_export(
    module: "torch.nn.Module",
    signature: Signature,
    cases: Sequence[Mapping[str, "torch.Tensor"]],
    graph: ir.Model,
    what: str,
) -> None:
    """Check that `graph` gives the outputs of `module` for every set of inputs in `cases`.

    Raises:
        ModelError: It does not.
    """
    session = ReferenceSession(graph)
    for inputs in cases:
        results = name_outputs(call_module(module, signature, inputs)).values()
        expected = dict(zip(session.output_names, map(to_numpy, results), strict=True))
        found = session.run({name: to_numpy(inputs[name]) for name in session.input_names})
        if difference := find_difference(expected, found):
            shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
            raise ModelError(
                f"The exported graph of `{what}` differs from the module for inputs {shapes}: {difference}.",
                expected="equal outputs, up to a relative error of 1e-4",
                why="Everything measured on the graph would be about another network.",
                fix="Look for randomness (functional dropout) or for sizes fixed while tracing, or fix the batch size.",
            )


def _cases(signature: Signature) -> list[dict[str, "torch.Tensor"]]:
    """Return the example inputs and, when the batch size is dynamic, the same at another batch size."""
    cases = [dict(signature.inputs)]
    if any("batch" in axes.values() for axes in signature.dynamic_axes.values()):
        cases.append({n: _rebatch(t, signature.dynamic_axes.get(n, {})) for n, t in signature.inputs.items()})
    return cases


def _rebatch(tensor: "torch.Tensor", axes: Mapping[int, str]) -> "torch.Tensor":
    for axis, name in axes.items():
        if name == "batch":
            indices = [i % tensor.shape[axis] for i in range(_CHECKED_BATCH)]
            tensor = tensor.index_select(axis, tensor.new_tensor(indices).long())
    return tensor


def _read_signature(
    module: "torch.nn.Module", example_inputs: object, dynamic_axes: DynamicAxes | None, what: str
) -> Signature:
    inputs = dict(_tensors_in(example_inputs))
    positional = not isinstance(example_inputs, Mapping)
    if not inputs:
        raise _bad_inputs(what, "there are none")
    if positional:
        names = list(inspect.signature(module.forward).parameters)
        inputs = {name if i >= len(names) else names[i]: t for i, (name, t) in enumerate(inputs.items())}
    if dynamic_axes is None:
        first = next(iter(inputs.values()))
        batch = first.shape[0] if first.ndim else None
        dynamic_axes = {n: {0: "batch"} for n, t in inputs.items() if t.ndim and t.shape[0] == batch}
        # The tracer takes a size of 1 for a constant, so one example becomes two.
        if batch == 1:
            inputs = {n: t.repeat_interleave(2, 0) if n in dynamic_axes else t for n, t in inputs.items()}
    if unknown := sorted(set(dynamic_axes) - set(inputs)):
        raise _bad_inputs(what, f"dynamic axes are given for {unknown}, inputs are {sorted(inputs)}")
    return Signature(inputs, positional, dynamic_axes)


def _tensors_in(example_inputs: object) -> Iterator[tuple[str, "torch.Tensor"]]:
    import torch

    if isinstance(example_inputs, Mapping):
        items = [(str(name), value) for name, value in example_inputs.items()]
    elif isinstance(example_inputs, Sequence):
        items = [(f"input_{i}", value) for i, value in enumerate(example_inputs)]
    else:
        items = [] if example_inputs is None else [("input_0", example_inputs)]
    for name, value in items:
        if not isinstance(value, torch.Tensor | np.ndarray):
            raise _bad_inputs("module", f"`{name}` is a {type(value).__name__}")
        yield name, torch.as_tensor(value).detach()


def _call(module: "torch.nn.Module", signature: Signature, inputs: Mapping[str, "torch.Tensor"], what: str) -> Any:
    try:
        return call_module(module, signature, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = {name: f"{tensor.dtype}{list(tensor.shape)}" for name, tensor in inputs.items()}
        raise _bad_inputs(what, f"it raises on {shapes}: {' '.join(str(error).split())[:300]}") from error


def _bad_inputs(what: str, problem: str) -> ModelError:
    return ModelError(
        f"The example inputs of `{what}` cannot be used: {problem}.",
        expected="a tensor, a tuple of tensors in the order of forward, or a dictionary of tensors by argument name",
        why="The module is traced by running it once on them.",
        fix="Pass `example_inputs=` with inputs on which `module(...)` works.",
    )


def _require_cpu(module: "torch.nn.Module", what: str) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu":
            raise ModelError(
                f"Parameter `{name}` of `{what}` is on device `{tensor.device}`.",
                expected="a module on the CPU",
                why="The graph is exported and compared with the module on the CPU.",
                fix="Call `module.cpu()` first.",
            )


@contextmanager
def _evaluating(module: "torch.nn.Module") -> Iterator[None]:
    """Put a module into evaluation mode and give every part its own mode back afterwards."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True


def _copy_weights(graph: ir.Model) -> None:
    for value in graph.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            value.const_value = ir.Tensor(tensor.numpy().copy(), tensor.dtype, name=value.name)


def _source_code(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
