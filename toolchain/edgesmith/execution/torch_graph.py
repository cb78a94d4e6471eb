"""TorchGraph: the graph as a torch module, so that what is deployed can also be tapped, trained and tuned."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgesmith.errors import DataError, ModelError
from edgesmith.execution.dtypes import from_tensor, to_tensor, torch_type
from edgesmith.execution.operators import Mode, lookup
from edgesmith.execution.plan import Plan, Planner, Surroundings, Weight, opset_version

_TRAINABLE = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}

# Constants up to this size stay on the CPU beside a GPU, and are copied to it where they meet its tensors.
_SMALL = 1024


class TorchGraph(nn.Module):
    """Runs an ONNX graph node by node in torch, with gradients.

    Float initializers are parameters, integer ones are buffers, both under the initializer's name. An initializer
    used in several places is one parameter. Numbers that an operator only reads, such as the bounds of Clip, are
    buffers too, whatever their type. A new TorchGraph is in evaluation mode.

    Args:
        model: The graph. Never changed: weights are copied, or mapped privately from an external data file.
        device: Where the weights live and the graph runs.

    Raises:
        UnsupportedOperatorError: An operator has no torch function; the message names it and the node.
    """

    def __init__(self, model: ir.Model, *, device: str | torch.device = "cpu") -> None:
        super().__init__()
        self._model = model.clone()
        self._mode = Mode()
        self._weights: dict[int, Weight] = {}
        self._plans: dict[tuple[str, ...], Plan] = {}
        # A graph may have no weight that tells where it is.
        self._anchor: Tensor
        self.register_buffer("_anchor", torch.empty(0), persistent=False)
        self._register_weights()
        # Before IR version 4 every initializer had to be listed as an input too; later ones are defaults.
        defaults = self._model.ir_version >= 4
        self._inputs = [value for value in self._model.graph.inputs if defaults or not value.is_initializer()]
        self._values = {value.name: value for value in _values(self._model.graph)}
        self.eval()
        self.to(device)
        self._plan(())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        anchor: Tensor = self._anchor
        return anchor.device

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return tuple(value.name or "" for value in self._inputs)

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> dict[str, Tensor]:
        """Return the graph's outputs and the tapped values, by name.

        Each inner tensor is freed after its last use, unless it is returned or a gradient needs it.

        Args:
            inputs: One tensor per graph input, of the dtype that the graph declares.
            taps: Names of inner values, inputs or initializers to return as well.

        Raises:
            DataError: An input is missing, unknown or of the wrong dtype.
            ModelError: An operator failed, or there is no value of a tapped name.
        """
        plan = self._plan(tuple(taps))
        values = self._checked(inputs)
        names = [*(value.name or "" for value in self._model.graph.outputs), *taps]
        return dict(zip(names, self._run(plan, values), strict=True))

    def to_ir(self) -> ir.Model:
        """Return the graph with the present parameters, in the source's dtypes. Shared weights stay shared."""
        written: dict[int, ir.Tensor[Any]] = {}
        model = self._model.clone()
        for graph in _graphs(model):
            for value in graph.initializers.values():
                weight = self._weights.get(id(value.const_value))
                if weight is None or value.const_value is None:
                    continue
                key = id(value.const_value)
                if key not in written:
                    tensor = weight.store[weight.key]
                    written[key] = to_tensor(tensor, value.const_value.dtype, value.const_value.name or value.name)
                value.const_value = written[key]
        return model

    def __deepcopy__(self, memo: dict[int, Any]) -> "TorchGraph":
        """Return an independent TorchGraph with the same values, for a teacher or an average of weights."""
        copy = TorchGraph(self.to_ir(), device=self.device).train(self.training)
        for mine, theirs in zip(self.parameters(), copy.parameters(), strict=True):
            theirs.data = mine.detach().clone()
            theirs.requires_grad_(mine.requires_grad)
        return copy

    def train(self, mode: bool = True) -> Self:
        """Switch Dropout on or off where the graph leaves that open. Batch statistics stay those of the graph."""
        self._mode.training = mode
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Where constants live depends on the device, so plans are made anew after a move.
        self._plans.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _run(self, plan: Plan, values: list[Tensor]) -> tuple[Any, ...]:
        results = plan.run(*values)
        device = self.device
        if device.type == "cpu":
            return results
        return tuple(value.to(device) if isinstance(value, Tensor) else value for value in results)

    def _plan(self, taps: tuple[str, ...]) -> Plan:
        if taps not in self._plans:
            graph = self._model.graph
            around = Surroundings(self._model.functions, self._weights, self._mode, self.device)
            outputs = [*graph.outputs, *(self._tapped(name) for name in taps)]
            planner = Planner(around, graph.opset_imports)
            self._plans[taps] = planner.plan(_sorted(graph), self._inputs, outputs)
        return self._plans[taps]

    def _tapped(self, name: str) -> ir.Value:
        if name not in self._values:
            raise ModelError(
                f"the graph has no value named {name!r}",
                expected="the name of a value of the main graph",
                why="it was asked for as a tap",
                fix="list the graph's values with `edgesmith inspect`",
            )
        return self._values[name]

    def _checked(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        names = self.input_names
        missing = [v.name for v in self._inputs if v.name not in inputs and not v.is_initializer()]
        unknown = [name for name in inputs if name not in names]
        if missing or unknown:
            raise DataError(
                f"the data does not match the model's inputs: missing {missing or 'none'}, unknown {unknown or 'none'}",
                expected=f"tensors named {', '.join(names)}",
                why="every input of the graph must be fed, and by its own name",
                fix="rename the tensors, or choose the columns that feed the model",
            )
        for value in self._inputs:
            found = inputs.get(value.name or "")
            if isinstance(found, Tensor) and value.dtype is not None and found.dtype != torch_type(value.dtype):
                raise DataError(
                    f"input {value.name!r} is {found.dtype}",
                    expected=str(torch_type(value.dtype)),
                    why="the graph was built for that type",
                    fix="convert the data",
                )
        return [inputs[v.name] if v.name in inputs else self._default(v) for v in self._inputs if v.name is not None]

    def _default(self, value: ir.Value) -> Tensor:
        weight = self._weights[id(value.const_value)]
        tensor: Tensor = weight.store[weight.key]
        return tensor

    def _register_weights(self) -> None:
        """Turn initializers into parameters and buffers, and let the private graph read them from there."""
        numbers = _read_as_numbers(self._model)
        taken: set[str] = set()
        lazy: dict[int, ir.LazyTensor] = {}
        for graph in _graphs(self._model):
            for value in graph.initializers.values():
                source = value.const_value
                if source is None or source.dtype == ir.DataType.STRING:
                    continue
                if id(source) not in lazy:
                    name = _unused(value.name or "weight", taken)
                    trainable = source.dtype in _TRAINABLE and value not in numbers
                    weight = self._register(name, _read(source, name), trainable)
                    lazy[id(source)] = _view(weight, source)
                    self._weights[id(lazy[id(source)])] = weight
                value.const_value = lazy[id(source)]

    def _register(self, name: str, tensor: Tensor, trainable: bool) -> Weight:
        """Keep a tensor under a dotted name, in nested modules as torch does, whatever the parts are called."""
        *path, leaf = name.split(".")
        scope: nn.Module = self
        for part in path:
            child = scope._modules.get(part)
            if child is None:
                child = scope._modules[part] = nn.Module()
            scope = child
        if trainable:
            scope._parameters[leaf] = nn.Parameter(tensor)
            return Weight(scope._parameters, leaf, trainable=True)
        scope._buffers[leaf] = tensor
        return Weight(scope._buffers, leaf, trainable=False, constant=tensor if tensor.numel() <= _SMALL else None)


def _read(source: ir.TensorProtocol, name: str) -> Tensor:
    try:
        return from_tensor(source)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the weight {name!r} cannot be read: {error}",
            expected="its data in the model, or in a file beside it",
            why="the graph cannot run without it",
            fix="copy the external data file next to the model, or export the model again",
        ) from error


def _view(weight: Weight, source: ir.TensorProtocol) -> ir.LazyTensor:
    """Return an ONNX tensor that reads its values from the module, so that the source's memory can go."""
    dtype, name = source.dtype, source.name
    return ir.LazyTensor(
        lambda: to_tensor(weight.store[weight.key], dtype, name),
        dtype=dtype,
        shape=ir.Shape(source.shape.numpy()),
        name=name,
    )


def _unused(name: str, taken: set[str]) -> str:
    """Return the name, made unique: two subgraphs may each have a weight of one name."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph and all graphs inside its nodes."""
    yield model.graph
    yield from model.graph.subgraphs()


def _sorted(graph: ir.Graph) -> list[ir.Node]:
    graph.sort()
    return list(graph)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _read_as_numbers(model: ir.Model) -> set[ir.Value]:
    """Return the initializers that operators only read as numbers, never compute with."""
    uses: defaultdict[ir.Value, list[bool]] = defaultdict(list)
    for node in model.graph.all_nodes():
        row = lookup(node.domain, node.op_type, opset_version(node))
        for position, value in enumerate(node.inputs):
            if value is not None and value.is_initializer():
                uses[value].append(row is not None and position in row.host and not value.is_graph_input())
    return {value for value, kinds in uses.items() if all(kinds) and not value.is_graph_output()}
