"""Plans: a graph turned into a list of steps over numbered slots.

All that can be decided once is decided here: the order, the function of each node with its attributes bound, constants
in the form that the function wants, and after which step each value dies. Running a plan is then a short loop.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from edgesmith.errors import ModelError, UnsupportedOperatorError
from edgesmith.execution.dtypes import from_tensor
from edgesmith.execution.expansion import schema_function
from edgesmith.execution.fusion import Fused, find_fusions
from edgesmith.execution.operators import Mode, Operator, Site, UnsupportedFormError, lookup

# What torch raises inside an operator when shapes, types or values do not fit.
_TORCH_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError, OverflowError)

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Step:
    """One call of an operator's function."""

    call: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...]
    """Slots whose value nobody reads after this step."""
    node: ir.Node


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph ready to run."""

    inputs: tuple[int, ...]
    captured: tuple[ir.Value, ...]
    """Values of the surrounding graph that this one reads, in the order `run` wants them after the inputs."""
    captured_slots: tuple[int, ...]
    outputs: tuple[int, ...]
    template: tuple[Any, ...]
    """The slots before a run: constants in place, the rest None. Slot 0 is an input left out."""
    weights: tuple[tuple[int, "Weight"], ...]
    steps: tuple[Step, ...]

    def run(self, *values: Any) -> tuple[Any, ...]:
        """Return the outputs for inputs and captured values, given by position."""
        slots = list(self.template)
        for slot, weight in self.weights:
            slots[slot] = weight.store[weight.key]
        for slot, value in zip(self.inputs + self.captured_slots, values, strict=False):
            slots[slot] = value
        del values
        step = None
        try:
            for step in self.steps:
                result = step.call(*[slots[index] for index in step.inputs])
                if type(result) is not tuple:
                    slots[step.outputs[0]] = result
                else:
                    for slot, value in zip(step.outputs, result, strict=False):
                        slots[slot] = value
                    value = None
                result = None
                for slot in step.dead:
                    slots[slot] = None
        except UnsupportedFormError as error:
            raise unsupported(step.node if step else None, str(error)) from error
        except _TORCH_ERRORS as error:
            raise _failed(step.node if step else None, error) from error
        return tuple(slots[index] for index in self.outputs)


@dataclass(frozen=True, slots=True)
class Weight:
    """Where a weight is kept: in the parameters or buffers of a module, so that moving the module moves it."""

    store: dict[str, Any]
    key: str
    trainable: bool
    constant: Tensor | None = None
    """The values on the CPU, of a small integer weight: shapes may be computed from them."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all plans of one TorchGraph share."""

    functions: Mapping[ir.OperatorIdentifier, ir.Function]
    weights: Mapping[int, Weight]
    """Weights by the identity of their ONNX tensor."""
    mode: Mode
    device: torch.device


def unsupported(node: ir.Node | None, reason: str = "", version: int | None = None) -> UnsupportedOperatorError:
    """Return the error for an operator that TorchGraph cannot compute."""
    if node is None:
        return UnsupportedOperatorError(
            reason, expected="a graph of known operators", why="it cannot be run", fix="use ReferenceSession"
        )
    number = version if version is not None else opset_version(node)
    domain = node.domain or "ai.onnx"
    return UnsupportedOperatorError(
        f"operator {node.op_type} of {domain}, opset {number}, at node {node.name!r} cannot be run with gradients"
        + (f": {reason}" if reason else ""),
        expected="an operator listed in docs/operators.md, in one of its common forms",
        why="TorchGraph has no torch function of the same meaning",
        fix="choose a method that needs no gradients, or export the model with standard operators",
    )


def _failed(node: ir.Node | None, error: Exception) -> ModelError:
    place = f"{node.op_type} {node.name!r}" if node is not None else "the graph's inputs"
    return ModelError(
        f"the graph failed while it ran, at {place}: {str(error).splitlines()[0] if str(error) else error!r}",
        expected="inputs whose shapes and values every operator takes",
        why="torch stopped inside that operator",
        fix="check the shape and range of the inputs, then the named node",
    )


def opset_version(node: ir.Node) -> int:
    """Return the opset version that gives the node its meaning, or 1 if none is declared."""
    if node.version is not None:
        return node.version
    graph: Any = node.graph
    while graph is not None:
        imports = graph.opset_imports
        for domain in (node.domain, "ai.onnx" if node.domain == "" else node.domain):
            if domain in imports:
                return int(imports[domain])
        owner = getattr(graph, "parent_node", None)
        graph = owner.graph if owner is not None else None
    return 1


class Planner:
    """Turns one graph into a Plan; graphs inside it get planners of their own."""

    def __init__(
        self,
        surroundings: Surroundings,
        opsets: Mapping[str, int],
        *,
        attributes: Mapping[str, ir.Attr] | None = None,
    ) -> None:
        self._around = surroundings
        self._opsets = opsets
        self._attributes = attributes or {}
        self._template: list[Any] = [None]
        self._slots: dict[ir.Value, int] = {}
        self._numbers: dict[ir.Value, int] = {}
        self._weights: list[tuple[int, Weight]] = []
        self._captured: list[ir.Value] = []

    def plan(self, nodes: Sequence[ir.Node], inputs: Iterable[ir.Value], outputs: Sequence[ir.Value]) -> Plan:
        """Return the plan that computes `outputs`.

        Args:
            nodes: The nodes, each after those it reads from.
            inputs: The values that `run` is given.
            outputs: The values that `run` returns; each is computed as such, and not as part of something fused.
        """
        input_slots = tuple(self._new(value) for value in inputs)
        fusions = find_fusions(nodes, frozenset(outputs))
        raw: list[tuple[Callable[..., Any], list[int], list[int], ir.Node]] = []
        for node in nodes:
            if node in fusions.absorbed or (node.op_type == "Constant" and node.domain in ("", "ai.onnx")):
                continue
            fused = fusions.roots.get(node)
            call, values = self._fused(fused, node) if fused else self._call(node)
            raw.append((call, values, [self._new(value) for value in node.outputs], node))
        output_slots = tuple(self._slot(value) for value in outputs)
        return Plan(
            inputs=input_slots,
            captured=tuple(self._captured),
            captured_slots=tuple(self._slots[value] for value in self._captured),
            outputs=output_slots,
            template=tuple(self._template),
            weights=tuple(self._weights),
            steps=tuple(self._with_lifetimes(raw, input_slots, output_slots)),
        )

    def _with_lifetimes(
        self,
        raw: list[tuple[Callable[..., Any], list[int], list[int], ir.Node]],
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
    ) -> list[Step]:
        immortal = {0, *outputs, *self._numbers.values(), *(slot for slot, _ in self._weights)}
        immortal |= {index for index, value in enumerate(self._template) if value is not None}
        read: set[int] = set(immortal)
        steps: list[Step] = []
        for call, values, results, node in reversed(raw):
            dead = tuple(dict.fromkeys(slot for slot in (*values, *results) if slot not in read))
            read.update(values)
            steps.append(Step(call, tuple(values), tuple(results), dead, node))
        return steps[::-1]

    def _new(self, value: ir.Value) -> int:
        self._template.append(None)
        self._slots[value] = len(self._template) - 1
        return self._slots[value]

    def _constant(self, content: Any) -> int:
        self._template.append(content)
        return len(self._template) - 1

    def _slot(self, value: ir.Value | None) -> int:
        """Return the slot of a value, giving it one if it is a weight, a constant, or of the surrounding graph."""
        if value is None or (value.name == "" and value.producer() is None):
            return 0
        if value in self._slots:
            return self._slots[value]
        slot = self._new(value)
        weight = self._weight(value)
        beside_gpu = weight is not None and weight.constant is not None and self._around.device != _CPU
        if weight is not None and not beside_gpu:
            self._weights.append((slot, weight))
            return slot
        content = self._content(value) if weight is None else weight.constant
        if content is not None:
            self._template[slot] = content
        else:
            self._captured.append(value)
        return slot

    def _weight(self, value: ir.Value) -> Weight | None:
        return self._around.weights.get(id(value.const_value)) if value.const_value is not None else None

    def _content(self, value: ir.Value) -> Any:
        """Return the torch tensor of a constant, or None if the value is computed."""
        producer = value.producer()
        if producer is not None and producer.op_type == "Constant" and producer.domain in ("", "ai.onnx"):
            return self._constant_node(producer)
        if value.is_initializer() and value.const_value is not None:
            return from_tensor(value.const_value)
        return None

    def _constant_node(self, node: ir.Node) -> Tensor:
        attribute = self._resolved(node).get("value")
        if attribute is not None:
            return from_tensor(attribute.as_tensor())
        for name, dtype in (("value_int", torch.int64), ("value_ints", torch.int64)):
            if name in node.attributes:
                return torch.tensor(self._resolved(node)[name].value, dtype=dtype)
        for name in ("value_float", "value_floats"):
            if name in node.attributes:
                return torch.tensor(self._resolved(node)[name].value, dtype=torch.float32)
        raise unsupported(node, "a constant that is a string or sparse")

    def _number(self, value: ir.Value | None) -> int | None:
        """Return the slot that holds a constant as Python numbers, or None if it is known only when running."""
        if value is None:
            return 0
        if value not in self._numbers:
            weight = self._weight(value)
            if weight is not None and weight.trainable:
                return None
            content = self._content(value) if weight is None else weight.constant
            if content is None:
                return None
            self._numbers[value] = self._constant(content.tolist())
        return self._numbers[value]

    def _resolved(self, node: ir.Node) -> dict[str, ir.Attr]:
        """Return the node's attributes, references to those of the enclosing function followed."""
        resolved: dict[str, ir.Attr] = {}
        for name, attribute in node.attributes.items():
            if not attribute.is_ref():
                resolved[name] = attribute
            elif (outer := attribute.ref_attr_name or "") in self._attributes:
                resolved[name] = self._attributes[outer]
        return resolved

    def _site(self, node: ir.Node) -> Site:
        wanted = [index for index, value in enumerate(node.outputs) if value.name]
        return Site(
            input_types=tuple(value.dtype if value is not None else None for value in node.inputs),
            output_types=tuple(value.dtype for value in node.outputs),
            outputs=max(wanted, default=0) + 1,
            mode=self._around.mode,
        )

    def _call(self, node: ir.Node) -> tuple[Callable[..., Any], list[int]]:
        function = self._around.functions.get(node.op_identifier())
        if function is not None:
            return self._call_function(node, function, function.attributes)
        version = node.version or self._opsets.get(node.domain) or opset_version(node)
        row = lookup(node.domain, node.op_type, version)
        if row is not None:
            return self._call_operator(node, row, version)
        body = schema_function(node, version)
        if body is None:
            raise unsupported(node, version=version)
        return self._call_function(node, body.function, body.defaults)

    def _call_function(
        self, node: ir.Node, function: ir.Function, defaults: Mapping[str, ir.Attr]
    ) -> tuple[Callable[..., Any], list[int]]:
        known = {name: value for name, value in defaults.items() if value.value is not None}
        opsets = {**self._opsets, **function.opset_imports}
        inner = Planner(self._around, opsets, attributes={**known, **self._resolved(node)})
        plan = inner.plan(list(function), function.inputs, function.outputs)
        return plan.run, [self._slot(value) for value in node.inputs]

    def _call_operator(self, node: ir.Node, row: Operator, version: int) -> tuple[Callable[..., Any], list[int]]:
        bound: dict[str, Any] = {}
        captured: list[int] = []
        graphs: list[tuple[str, Plan]] = []
        for name, attribute in self._resolved(node).items():
            if name not in row.attributes:
                raise unsupported(node, f"attribute {name!r} is not known", version)
            if attribute.type == ir.AttributeType.GRAPH:
                graphs.append((name, self._subgraph(attribute.as_graph())))
            else:
                bound[name] = _attribute_value(attribute)
        if row.takes_site:
            bound["site"] = self._site(node)
        values: list[int] = []
        late: list[int] = []
        for position, value in enumerate(node.inputs):
            number = self._number(value) if position in row.host else None
            if number is None and position in row.host:
                late.append(position)
            values.append(self._slot(value) if number is None else number)
        call: Callable[..., Any] = partial(row.function, **bound) if bound else row.function
        for _, plan in graphs:
            captured += [self._slot(value) for value in plan.captured]
        # Numbers are read before tensors are moved: a shape must not visit the GPU.
        call = call if graphs else self._placed(call, values)
        call = _reading_numbers(call, tuple(late)) if late else call
        call = _with_graphs(call, len(values), graphs) if graphs else call
        return call, values + captured

    def _subgraph(self, graph: ir.Graph) -> Plan:
        inner = Planner(self._around, self._opsets, attributes=self._attributes)
        return inner.plan(list(graph), graph.inputs, graph.outputs)

    def _fused(self, fused: Fused, node: ir.Node) -> tuple[Callable[..., Any], list[int]]:
        values = [self._slot(value) for value in fused.inputs]
        return self._placed(fused.bind(self._site), values), values

    def _placed(self, call: Callable[..., Any], values: list[int]) -> Callable[..., Any]:
        """Return `call` such that tensors on the CPU join those on the GPU where both meet."""
        device = self._around.device
        if device == _CPU:
            return call
        constant = frozenset(i for i, slot in enumerate(values) if isinstance(self._template[slot], Tensor))
        copies: dict[int, Tensor] = {}

        def join(*given: Any) -> Any:
            tensors = [value for value in given if isinstance(value, Tensor)]
            if all(tensor.device == _CPU for tensor in tensors) or all(tensor.device != _CPU for tensor in tensors):
                return call(*given)
            moved = list(given)
            for position, value in enumerate(given):
                if isinstance(value, Tensor) and value.device == _CPU:
                    moved[position] = copies.get(position)
                    if moved[position] is None:
                        moved[position] = value.to(device, non_blocking=True)
                        if position in constant:
                            copies[position] = moved[position]
            return call(*moved)

        return join


def _attribute_value(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return from_tensor(attribute.as_tensor())
    if attribute.type == ir.AttributeType.STRING:
        return attribute.as_string()
    return attribute.value


def _reading_numbers(call: Callable[..., Any], positions: tuple[int, ...]) -> Callable[..., Any]:
    """Return `call` with the inputs at `positions` turned into Python numbers."""

    def read(*values: Any, **bodies: Any) -> Any:
        numbers = list(values)
        for position in positions:
            if position < len(numbers) and isinstance(numbers[position], Tensor):
                numbers[position] = numbers[position].tolist()
        return call(*numbers, **bodies)

    return read


def _with_graphs(call: Callable[..., Any], count: int, graphs: list[tuple[str, Plan]]) -> Callable[..., Any]:
    """Return `call` with each subgraph as a keyword; what the subgraphs capture follows the first `count` values."""

    def run(*values: Any) -> Any:
        start = count
        bodies: dict[str, Callable[..., Any]] = {}
        for name, plan in graphs:
            captured = values[start : start + len(plan.captured)]
            start += len(plan.captured)
            bodies[name] = partial(_run_body, plan, captured)
        return call(*values[:count], **bodies)

    return run


def _run_body(plan: Plan, captured: tuple[Any, ...], *values: Any) -> tuple[Any, ...]:
    return plan.run(*values, *captured)
