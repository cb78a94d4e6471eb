"""Streams of vision transformers: tokens along axis 1, bidirectional attention, blocks of attention and MLP.

Which tokens are patches is read by following the places of the patch embedding's output to the entry of the stream.
What else stands there (class, distillation, register tokens) is protected.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.residual import Block, Stream
from edgesmith.graph.shapes import Array
from edgesmith.graph.structure import Attention, Structure
from edgesmith_tokens.tokens.weights import weight_of_keys


@dataclass(frozen=True, slots=True)
class VisionBlock:
    """A block of a vision transformer: attention, then an MLP, each added to the stream."""

    number: int
    """Counted from 0 through the whole graph, as `edgesmith inspect` does."""
    block: Block
    attention: Attention
    input: str
    """The stream before the block, [batch, tokens, width]."""
    attended: str
    """The stream behind the sum with attention."""
    output: str
    """The stream behind the sum with the MLP."""


@dataclass(frozen=True, slots=True)
class VisionStream:
    """A residual stream over the tokens of an image."""

    stream: Stream
    tokens: int
    """Tokens, with the protected ones."""
    width: int
    protected: int
    """Tokens in front that are no patches."""
    patches: tuple[int, ...]
    """For each token behind the protected ones, the number of its patch, row by row. Empty when not known."""
    grid: tuple[int, int] | None
    """Rows and columns of patches, when known."""
    blocks: tuple[VisionBlock, ...]
    obstacle: str
    """Why its tokens cannot become fewer; empty where they can."""
    logarithm: str | None = None
    """Logarithms of how many patches each token stands for, [batch, 1, 1, tokens], where all attention adds them to its
    scores: tokens that an earlier step made means of several."""
    first: int = 0
    """Blocks of the streams that it goes on from: a pyramid is several streams, each behind the one before."""

    @property
    def input(self) -> str:
        """The value that enters the first block."""
        return self.stream.input

    @property
    def output(self) -> str:
        """The value that leaves the last block."""
        return self.stream.output


def find_vision_streams(
    model: ir.Model, structure: Structure, *, protected: int | None = None
) -> tuple[VisionStream, ...]:
    """Return the streams of vision transformers, in the order of the data.

    A stream counts when some of its blocks have attention and it works on what a patch embedding gave; one whose tokens
    cannot become fewer has an obstacle.

    Args:
        model: The graph that the structure was found in.
        structure: Its structure.
        protected: Number of tokens in front to protect; None reads it from the graph.
    """
    flow = Dataflow(model)
    found: list[VisionStream] = []
    first = 0
    for stream in structure.streams:
        if any(block.attentions for block in stream.blocks):
            before = next((each for each in reversed(found) if _goes_on(flow, each, stream)), None)
            vision = _vision_stream(flow, structure, stream, first, protected, before)
            if vision is not None:
                found.append(vision)
        first += len(stream.blocks)
    return tuple(found)


def _goes_on(flow: Dataflow, before: VisionStream, stream: Stream) -> bool:
    return flow.is_ancestor(flow.value(before.output), flow.value(stream.input))


def _vision_stream(
    flow: Dataflow,
    structure: Structure,
    stream: Stream,
    first: int,
    protected: int | None,
    before: VisionStream | None,
) -> VisionStream | None:
    entry = flow.value(stream.input)
    patches = [each for each in structure.embeddings if each.kind == "patch"]
    patches = [each for each in patches if flow.is_ancestor(flow.value(each.output), entry)]
    if not patches:
        return None
    shape = flow.shapes.shape(entry)
    logarithm = _logarithm(flow, stream, [each.output for each in patches])
    blocks, obstacle = _blocks(stream, first, logarithm)
    if shape is None or len(shape) != 3 or _open_images(flow):
        obstacle = obstacle or (
            f"the number of tokens of {entry.name} is not fixed; fix the sizes of the images, for instance with "
            "`shapes` in the recipe"
        )
        return VisionStream(stream, 0, stream.width or 0, 0, (), None, blocks, obstacle)
    places, grid = _places(flow, [each.output for each in patches], entry, shape)
    if protected is None:
        protected, reason = _protected(places)
        if before is not None and not before.obstacle and (places is None or not (places >= 0).any()):
            protected, reason = _protected_before(flow, before, entry, shape)
        obstacle = obstacle or reason
    kept = places[protected:] if places is not None else None
    numbers = tuple(int(number) for number in kept) if kept is not None and (kept >= 0).all() else ()
    if not 0 <= protected < shape[1]:
        obstacle = obstacle or f"{protected} protected tokens leave none of {shape[1]}; correct the option protected"
    depth = 0 if before is None else before.first + len(before.stream.blocks)
    return VisionStream(stream, shape[1], shape[2], protected, numbers, grid, blocks, obstacle, logarithm, depth)


def _open_images(flow: Dataflow) -> bool:
    """Whether an input of images has sides that are not fixed."""
    shapes = [tuple(value.shape) for value in flow.model.graph.inputs if value.shape is not None]
    return any(len(shape) == 4 and not all(isinstance(size, int) for size in shape[1:]) for shape in shapes)


def _logarithm(flow: Dataflow, stream: Stream, patches: Sequence[str]) -> str | None:
    """Return the one value that weighs the keys of all attention layers of a stream, or None."""
    softmaxes = [attention.softmax for block in stream.blocks for attention in block.attentions]
    nodes = {node.name: node for node in flow.nodes if node.op_type == "Softmax"}
    makers = {flow.producer(name) for name in patches}
    values = {weight_of_keys(flow, nodes[name], makers) if name in nodes else None for name in softmaxes}
    only = values.pop() if len(values) == 1 else None
    return None if only is None else only.name


def _blocks(stream: Stream, first: int, logarithm: str | None) -> tuple[tuple[VisionBlock, ...], str]:
    """Return the blocks that have one attention layer and then one MLP, and why the stream is none of them."""
    found: list[VisionBlock] = []
    for number, block in enumerate(stream.blocks, first):
        residuals = block.residuals
        plain = [len(residual.attentions) for residual in residuals] == [1, 0] and len(residuals[1].mlps) == 1
        if not plain:
            return tuple(found), (
                f"block {number} is not one attention layer and then one MLP, each with a sum; where a step such as "
                "static-attention or merge-tokens made it so, put this step before that one"
            )
        attention = residuals[0].attentions[0]
        attended = residuals[0].output
        if block.norm == "post":
            norm = residuals[0].norm_after
            attended = attended if norm is None else norm.output
        found.append(VisionBlock(number, block, attention, block.input, attended, block.output))
        reason = _unfit(attention, logarithm)
        if reason:
            return tuple(found), f"attention of block {number} {reason}"
    return tuple(found), ""


def _unfit(attention: Attention, logarithm: str | None) -> str:
    weighed = attention.mask is not None and attention.mask == logarithm
    if attention.causal is None and not weighed:
        return "has a mask that cannot be evaluated"
    if attention.causal:
        return "is causal: merged tokens would have no place in the order"
    if attention.padding_mask and not weighed:
        return "has a mask that depends on an input"
    if attention.rotary:
        return "turns queries and keys by their position, which merged tokens do not have"
    return ""


def _places(
    flow: Dataflow, sources: Sequence[str], entry: ir.Value, shape: tuple[int, ...]
) -> tuple[Array | None, tuple[int, int] | None]:
    """Return the patch that each token of the entry holds, -1 for none, and the grid of patches."""
    for name in sources:
        source = flow.value(name)
        size = flow.shapes.shape(source)
        if size is None or len(size) != 4:
            continue
        start = np.broadcast_to(np.arange(size[2] * size[3]).reshape(1, 1, size[2], size[3]), size)
        traced = flow.trace(source, entry, start)
        if traced is None or traced.shape != shape:
            continue
        rows = traced[0]
        if (rows == rows[:, :1]).all() and (traced == rows).all():
            return rows[:, 0], (size[2], size[3])
    return None, None


def _protected(places: Array | None) -> tuple[int, str]:
    """Return how many tokens in front are no patches, and why that cannot be told."""
    if places is None:
        return 0, "which tokens are patches cannot be read from the graph; set the option protected"
    patches = np.flatnonzero(places >= 0)
    if not len(patches):
        return 0, "which of its tokens are means of patches cannot be read from the graph; set the option protected"
    first = int(patches[0])
    if len(patches) != len(places) - first:
        return first, "tokens that are no patches stand behind patches; only those in front can be protected"
    return first, ""


def _protected_before(flow: Dataflow, before: VisionStream, entry: ir.Value, shape: tuple[int, ...]) -> tuple[int, str]:
    """Return how many tokens in front came as they were from the stream before, and why that cannot be told.

    The others are means of its tokens. New tokens may not join them, since these would be no patches.
    """
    source, kept = flow.value(before.output), before.protected
    joined = [value for node in flow.between(source, entry) if node.op_type == "Concat" for value in node.inputs]
    new = any(value is not None and value is not source and not flow.between(source, value) for value in joined)
    start = np.broadcast_to(np.arange(before.tokens).reshape(1, -1, 1), flow.shapes.shape(source) or (0, 0, 0))
    traced = flow.trace(source, entry, start) if kept else np.full(shape, -1)
    wanted = np.asarray([*range(kept), *[-1] * (shape[1] - kept)]).reshape(1, -1, 1)
    if new or traced is None or traced.shape != shape or not np.equal(traced, wanted).all():
        return 0, "which of its tokens are means of patches cannot be read from the graph; set the option protected"
    return kept, ""
