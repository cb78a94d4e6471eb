"""Gives a stream fewer tokens at some places, and lets everything behind go on with the new number.

What a method puts there is its own affair. Behind it, shapes that were written for the old number are rewritten, masks
that hide nothing shrink, attention weighs tokens by their size, and whoever reads all tokens outside of the stream gets
as many as before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgesmith.errors import StepError
from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith_tokens.finding.vision import VisionStream
from edgesmith_tokens.tokens.paths import TokenPaths, cannot, follow, shrunk
from edgesmith_tokens.tokens.sizes import logarithms, weigh_keys
from edgesmith_tokens.tokens.weights import constant_sizes, sizes_behind
from edgesmith_tokens.tokens.writer import Writer

_SMALLEST_SIZE = 1e-30
"""What a size of 0 is taken for: next to nothing too, but a mean of two such tokens is no 0 / 0."""

Restore = Callable[[Writer, ir.Value], ir.Value]
"""Gives as many tokens as the stream had at first, from [batch, count, any width]."""


def _as_they_are(writer: Writer, values: ir.Value) -> ir.Value:
    return values


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a stream holds at one place."""

    values: ir.Value
    """[batch, count, width]"""
    count: int
    sizes: ir.Value | None = None
    """How many tokens each stands for, [batch, count, 1] in float32; None where all count alike."""
    restore: Restore = _as_they_are


Reducer = Callable[[Writer, Tokens], Tokens]
"""Puts nodes behind what the stream holds, and returns what it holds from then on. Count, sizes and restore must fit
the new values; values of the same count mean that nothing happens."""


def examine(model: ir.Model, vision: VisionStream) -> TokenPaths:
    """Return where the tokens of a stream go, once everything there is known to take fewer of them.

    Raises:
        StepError: Something does not; it is named.
    """
    fused = next((block for block in vision.blocks if block.attention.fused is not None), None)
    reason = vision.obstacle
    if fused is not None:
        reason = reason or (
            f"attention of block {fused.number} is the fused operator {fused.attention.fused}, into which sizes of "
            "tokens cannot be written; start from the file before it was optimized, with attention in single operators"
        )
    if reason:
        raise StepError(
            f"the tokens of {vision.input} cannot become fewer: {reason}",
            expected="a vision transformer whose operators treat each token alone, apart from attention",
            why="everything behind the place where tokens become fewer must take the new number of them",
            fix="leave the method out for this model, or export it in single operators with fixed image sizes",
        )
    paths = follow(model, vision)
    _require_no_joins(paths, vision)
    for node in _softmaxes(model, vision):
        _require_scores(paths, node)
    # What weighs the keys is written anew, from the sizes that the tokens have then.
    for node, index in _weighing(model, vision).values():
        paths.fixed[node] = tuple(each for each in paths.fixed.get(node, ()) if each != index)
    for node, indices in paths.fixed.items():
        for index in indices:
            shrunk(paths, node, index)
    inside = {*paths.nodes, *paths.selectors}
    for value in paths.axes:
        read = any(node not in inside and node.op_type != "Shape" for node, _ in value.uses())
        if read or value.is_graph_output():
            _require_list(paths, value)
    return paths


def obstacle_to_fewer(model: ir.Model, vision: VisionStream) -> str:
    """Return why the tokens of a stream cannot become fewer; empty where they can."""
    try:
        examine(model, vision)
    except StepError as error:
        return error.what
    return ""


def reduce_tokens(
    model: ir.Model,
    vision: VisionStream,
    reducers: Mapping[str, Reducer],
    *,
    proportional: bool = True,
    paths: TokenPaths | None = None,
) -> tuple[int, ...]:
    """Reduce the tokens of a stream at some places, in place.

    Args:
        model: A clone of the model in which the stream was found.
        vision: The stream.
        reducers: What to do, by the name of the value of the stream that holds the tokens.
        proportional: Whether attention weighs keys by the logarithm of their sizes.
        paths: From `examine` on this clone; None looks again.

    Returns:
        Tokens that the attention of each block has.

    Raises:
        StepError: A node cannot work on fewer tokens; it is named.
    """
    return _Reduction(model, vision, paths or examine(model, vision), proportional).run(reducers)


class _Reduction:
    """One stream while its tokens become fewer."""

    def __init__(self, model: ir.Model, vision: VisionStream, paths: TokenPaths, proportional: bool) -> None:
        self.vision, self.paths, self.proportional = vision, paths, proportional
        self.editor = GraphEditor(model.graph)
        self.entry = self.paths.flow.value(vision.input)
        self.inside = frozenset((*self.paths.nodes, *self.paths.selectors))
        self.softmaxes = {node: index for index, node in enumerate(_softmaxes(model, vision))}
        self.weighing = _weighing(model, vision)
        self.fewer: dict[ir.Value, Tokens] = {}
        """What the stream held where a value was made, for all values with fewer tokens than at first."""
        self.logarithm: dict[ir.Value, ir.Value] = {}
        self.written: list[ir.Node] = []
        self.places = 0

    def run(self, reducers: Mapping[str, Reducer]) -> tuple[int, ...]:
        """Go through the stream from its entry to its end; see `reduce_tokens`."""
        counts = [self.vision.tokens] * len(self.softmaxes)
        made: dict[ir.Value, Tokens] = {}
        self._make(made, self.entry, Tokens(self.entry, self.vision.tokens, self._sizes()), reducers)
        for node in self.paths.nodes:
            states = [made[value] for value in node.inputs if value in made]
            if not states:
                continue
            state, outputs = states[0], [output for output in node.outputs if output in self.paths.axes]
            if node in self.softmaxes:
                counts[self.softmaxes[node]] = state.count
            if state.count != self.vision.tokens:
                self.fewer.update(dict.fromkeys(outputs, state))
                self._adapt(node, state)
            for output in outputs:
                self._make(made, output, state, reducers)
        for value, state in self.fewer.items():
            self._keep_outside(value, state)
        self.editor.remove_unused(reversed(self.written))
        return tuple(counts)

    def _sizes(self) -> ir.Value | None:
        """Return the sizes that tokens come with, [batch or 1, tokens, 1]; None where all count alike."""
        if self.vision.logarithm is None:
            return None
        logarithm = self.paths.flow.value(self.vision.logarithm)
        known, sizes = constant_sizes(self.paths.flow, logarithm), sizes_behind(logarithm)
        if known is not None or sizes is None:
            return None if known is None else self.editor.add_initializer("tokens.sizes", known)
        writer = self._writer(sizes)
        smallest = writer.constant(np.asarray(_SMALLEST_SIZE, np.float32), "smallest_size")
        sizes = writer.add("Max", (writer.cast(sizes, ir.DataType.FLOAT), smallest), shape=sizes.shape)
        self.written += writer.written
        return sizes

    def _make(
        self, made: dict[ir.Value, Tokens], value: ir.Value, state: Tokens, reducers: Mapping[str, Reducer]
    ) -> None:
        """Note what the stream holds behind a value, after a reducer worked there if there is one for it."""
        made[value] = state
        reduce = reducers.get(value.name or "")
        if reduce is None:
            return
        readers = [(node, index) for node, index in value.uses() if node in self.inside]
        writer = self._writer(value)
        result = reduce(writer, replace(state, values=value))
        self.written += writer.written
        if result.count == state.count:
            return
        for node, index in readers:
            node.replace_input_with(index, result.values)
        made[result.values] = result

    def _writer(self, behind: ir.Value) -> Writer:
        self.places += 1
        return Writer(self.editor, behind, f"tokens{self.places}")

    def _adapt(self, node: ir.Node, state: Tokens) -> None:
        """Let one node work on the new number of tokens."""
        axes, nothing = self.paths.axes, False
        for index in self.paths.fixed.get(node, ()):
            array, old = shrunk(self.paths, node, index), node.inputs[index]
            nothing = node.op_type == "Add" and not array.any()
            node.replace_input_with(index, self.editor.add_initializer(f"{node.name}.each_token", array))
            self._drop(old)
        for output in node.outputs:
            if output in axes and output.shape is not None:
                sizes = [state.count if axis in axes[output] else size for axis, size in enumerate(output.shape)]
                output.shape = ir.Shape(sizes)
        if node.op_type in ("Reshape", "Expand"):
            self._write_shape(node, state.count)
        if nothing:
            self.editor.bypass(node, index=next(i for i, value in enumerate(node.inputs) if value in axes))
        if node in self.weighing and state.sizes is not None:
            adder, index = self.weighing[node]
            old = adder.inputs[index]
            new = self._logarithm(state.sizes)
            if old is not None and old.dtype is not None:
                new = Writer(self.editor, new, f"tokens{self.places}").cast(new, old.dtype)
            adder.replace_input_with(index, new)
            self._drop(old)
        elif node in self.softmaxes and state.sizes is not None and self.proportional:
            weigh_keys(self.editor, node, self._logarithm(state.sizes))

    def _logarithm(self, sizes: ir.Value) -> ir.Value:
        if sizes not in self.logarithm:
            self.logarithm[sizes] = logarithms(Writer(self.editor, sizes, f"tokens{self.places}"), sizes)
        return self.logarithm[sizes]

    def _write_shape(self, node: ir.Node, count: int) -> None:
        """Give a Reshape or Expand its shape with the new number of tokens."""
        output, old, expand = node.outputs[0], node.inputs[1], node.op_type == "Expand"
        full = self.paths.flow.shapes.shape(output) or ()
        written = constant_value(old)
        if written is None:
            # Computed from the sizes of some value; what changes between runs is the batch, which stands in front.
            written = np.asarray([1 if expand else -1, *full[1:]], np.int64)
        sizes = [int(size) for size in written.reshape(-1)]
        first = len(sizes) - len(full)
        for axis in self.paths.axes.get(output, ()):
            if axis + first >= 0 and (expand or sizes[axis + first] != 0):
                sizes[axis + first] = 1 if expand else count
        node.replace_input_with(1, self.editor.add_initializer(f"{node.name}.shape", np.asarray(sizes, np.int64)))
        self._drop(old)

    def _keep_outside(self, value: ir.Value, state: Tokens) -> None:
        """Give readers outside of the stream as many tokens as before."""
        outside = [node for node, _ in value.uses() if node in self.paths.flow.nodes and node not in self.inside]
        for node in [each for each in outside if each.op_type == "Shape"]:
            outside.remove(node)
            self._write_known_shape(node)
        if not outside and not value.is_graph_output():
            return
        _require_list(self.paths, value)
        restored = state.restore(Writer(self.editor, value, "tokens.restored"), value)
        restored.type = value.type
        if value.shape is not None:
            restored.shape = ir.Shape([value.shape[0], self.vision.tokens, value.shape[2]])
        self.editor.replace_uses(value, restored, keep=[node for node, _ in value.uses() if node not in outside])

    def _write_known_shape(self, node: ir.Node) -> None:
        """Let a node that reads the shape of fewer tokens give that of as many as before."""
        known = self.paths.flow.shapes.known(node.outputs[0])
        entry = self.paths.flow.shapes.shape(self.entry)
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        if known is None or entry is None or (start == 0 and known.size and known[0] != entry[0]):
            raise cannot(node, "it reads a shape that is computed in a way that cannot be followed")
        sizes = [int(size) for size in known]
        writer = Writer(self.editor, self.entry, "tokens.shape")
        result = writer.batch_of(self.entry, *sizes[1:]) if start == 0 and sizes else writer.integers(*sizes)
        self.editor.replace_uses(node.outputs[0], result)
        self.editor.remove_unused([node])

    def _drop(self, value: ir.Value | None) -> None:
        """Remove what made a value, where nobody needs it any more."""
        if value is None or value.uses() or value.is_graph_output():
            return
        producer = value.producer()
        if producer is not None:
            self.editor.remove_unused([producer])
        elif value.is_initializer() and not value.is_graph_input() and value.name is not None:
            self.editor.graph.initializers.pop(value.name)


def _softmaxes(model: ir.Model, vision: VisionStream) -> list[ir.Node]:
    """Return the softmax of each block."""
    nodes = {node.name: node for node in model.graph}
    missing = [block.number for block in vision.blocks if block.attention.softmax not in nodes]
    if missing:
        raise StepError(
            f"attention of block {missing[0]} stands in a subgraph",
            expected="a stream in the main graph",
            why="what happens to tokens is followed through one graph",
            fix="export the model without If, Loop and Scan around its blocks",
        )
    return [nodes[block.attention.softmax] for block in vision.blocks]


def _weighing(model: ir.Model, vision: VisionStream) -> dict[ir.Node, tuple[ir.Node, int]]:
    """Return what adds to the scores of each softmax how much its keys weigh, and the number of its input that says it.

    Empty where the stream comes without sizes.
    """
    found = {}
    for softmax in _softmaxes(model, vision) if vision.logarithm is not None else ():
        scores = softmax.inputs[0]
        node = None if scores is None else scores.producer()
        for index, value in enumerate(() if node is None else node.inputs):
            if node is not None and value is not None and value.name == vision.logarithm:
                found[softmax] = node, index
    return found


def _require_no_joins(paths: TokenPaths, vision: VisionStream) -> None:
    """Raise where tokens from before and from behind the attention of a block meet, but in its own sums."""
    places = {name for block in vision.blocks for name in (block.attended, block.output)}
    passed = {paths.flow.value(vision.input): 0}
    for node in paths.nodes:
        found = {passed[value] for value in node.inputs if value in passed}
        if len(found) > 1:
            raise cannot(node, "it joins tokens from before a block with tokens from behind it")
        for output in node.outputs:
            if found and output in paths.axes:
                passed[output] = max(found) + (output.name in places)


def _require_scores(paths: TokenPaths, softmax: ir.Node) -> None:
    scores = softmax.inputs[0]
    rank = 0 if scores is None else len(paths.flow.shapes.shape(scores) or ())
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    if scores is None or rank != 4 or axis % rank != 3 or paths.axes.get(scores, frozenset()) != {2, 3}:
        raise cannot(softmax, "its input is not [batch, heads, queries, keys], so keys cannot be weighed by size")


def _require_list(paths: TokenPaths, value: ir.Value) -> None:
    """Raise unless a value is [batch, tokens, width], so that it can have as many tokens as before."""
    if paths.axes[value] != {1} or len(paths.flow.shapes.shape(value) or ()) != 3:
        reader = next((node for node, _ in value.uses() if node not in paths.nodes), None) or value.producer()
        if reader is not None:
            raise cannot(reader, f"{value.name} is read outside of the stream and is no list of tokens")
