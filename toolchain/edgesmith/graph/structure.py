"""What a graph is made of: residual streams, blocks, attention, MLPs, convolutions, embeddings and heads.

Everything is found in the graph alone. Names and metadata are never read; they only fill the records, so that a
method can find the nodes again. The parts stand in files of their own: `attention`, `mlp`, `norm`, `linear`,
`convolution`, `recurrent`, `residual`, `embedding`, `head` and `quantized`.
"""

from collections import Counter
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import onnx_ir as ir

from edgesmith.graph.attention import Attention, find_attentions
from edgesmith.graph.convolution import Convolution, find_convolutions
from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.embedding import Embedding, find_embeddings
from edgesmith.graph.head import Head, find_heads
from edgesmith.graph.linear import Linear, find_linears
from edgesmith.graph.mlp import MLP, find_mlps
from edgesmith.graph.norm import Norm, find_norms
from edgesmith.graph.quantized import QuantizedProduct, QuantizedValue, find_quantized, find_quantized_products
from edgesmith.graph.recurrent import Recurrent, find_recurrent
from edgesmith.graph.residual import Block, Layers, Residual, Stream, find_streams

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "Convolution",
    "Embedding",
    "Head",
    "Linear",
    "Norm",
    "QuantizedProduct",
    "QuantizedValue",
    "Recurrent",
    "Residual",
    "Stream",
    "Structure",
    "find_structure",
    "label_values",
]


@dataclass(frozen=True, slots=True)
class Structure:
    """The structure of a graph. All tuples are in the order of the data, from inputs to outputs."""

    streams: tuple[Stream, ...]
    attentions: tuple[Attention, ...]
    """All attention layers, inside blocks or not."""
    mlps: tuple[MLP, ...]
    """The MLPs of blocks."""
    norms: tuple[Norm, ...]
    linears: tuple[Linear, ...]
    """All linear layers, whatever they belong to."""
    convolutions: tuple[Convolution, ...]
    recurrent: tuple[Recurrent, ...]
    embeddings: tuple[Embedding, ...]
    heads: tuple[Head, ...]
    quantized: tuple[QuantizedValue, ...]
    quantized_products: tuple[QuantizedProduct, ...]
    """Products, convolutions and tables that read codes. Methods keep them as they are."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of all streams."""
        return tuple(block for stream in self.streams for block in stream.blocks)

    def summary(self) -> str:
        """Return one line for people."""
        layered = [stream for stream in self.streams if any(block.attentions or block.mlps for block in stream.blocks)]
        parts = [_describe_blocks(stream) for stream in layered]
        others = [stream for stream in self.streams if stream not in layered]
        if others:
            widths = sorted({stream.width for stream in others if stream.width is not None})
            number = _count(sum(len(stream.blocks) for stream in others), "residual block")
            parts.append(f"{number} of width {', '.join(str(width) for width in widths)}")
        if not layered and self.attentions:
            parts.append(_count(len(self.attentions), "attention layer"))
        if self.convolutions:
            depthwise = sum(convolution.depthwise for convolution in self.convolutions)
            parts.append(
                _count(len(self.convolutions), "convolution") + (f" ({depthwise} depthwise)" if depthwise else "")
            )
        parts += [
            _count(count, f"{kind} layer") for kind, count in Counter(each.op_type for each in self.recurrent).items()
        ]
        kinds = Counter(embedding.kind for embedding in self.embeddings)
        if kinds:
            parts.append(f"embeddings: {', '.join(kinds)}")
        for head in self.heads:
            parts.append(f"{head.kind.replace('_', ' ')} head of {head.classes}{' (tied)' if head.tied else ''}")
        if self.quantized:
            parts.append(_count(len(self.quantized), "quantized value"))
        for types, count in Counter(each.types for each in self.quantized_products).items():
            parts.append(f"{_count(count, 'product')} of {types}")
        return "; ".join(parts) or f"no blocks; {_count(len(self.linears), 'linear layer')}"

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON data, with the derived properties of each record."""
        plain = _plain(self)
        inside = {attention.context for block in self.blocks for attention in block.attentions}
        # Attention and MLPs of blocks are written there, once.
        plain["attentions"] = [_plain(each) for each in self.attentions if each.context not in inside]
        del plain["mlps"], plain["blocks"]
        return {"summary": self.summary(), **plain}


def find_structure(model: ir.Model) -> Structure:
    """Return what a graph is made of.

    Args:
        model: The graph, with weights or with their shapes at least. It is not changed. Local functions are opaque, so
            inline them before; unnamed nodes appear with an empty name.
    """
    flow = Dataflow(model)
    linears = find_linears(flow)
    norms = find_norms(flow)
    convolutions = find_convolutions(flow)
    attentions = find_attentions(flow, linears)
    mlps = find_mlps(flow, linears)
    heavy = {flow.producer(linear.product) for linear in linears}
    heavy |= {flow.producer(convolution.output) for convolution in convolutions}
    heavy |= {flow.producer(attention.context) for attention in attentions}
    streams = find_streams(flow, Layers(attentions, mlps, convolutions, norms, frozenset(heavy)))
    embeddings = find_embeddings(flow, linears, convolutions, norms, streams)
    residuals = [residual for stream in streams for block in stream.blocks for residual in block.residuals]
    inside = {each.down.product for residual in residuals for each in residual.mlps}
    claimed = {residual.output for residual in residuals} | {embedding.output for embedding in embeddings}
    claimed |= {linear.product for residual in residuals for linear in _linears_of(residual)}
    return Structure(
        streams=tuple(streams),
        attentions=tuple(attentions),
        mlps=tuple(mlp for mlp in mlps if mlp.down.product in inside),
        norms=tuple(norms),
        linears=tuple(linears),
        convolutions=tuple(convolutions),
        recurrent=tuple(find_recurrent(flow)),
        embeddings=tuple(embeddings),
        heads=tuple(find_heads(flow, linears, convolutions, embeddings, claimed)),
        quantized=tuple(find_quantized(flow)),
        quantized_products=tuple(find_quantized_products(flow)),
    )


def label_values(structure: Structure) -> dict[str, str]:
    """Return the values that are worth comparing between two versions of a graph, with names for people.

    These are the outputs of blocks and of the attention and MLPs in them, of convolutions (behind batch normalization
    and activation), of recurrent layers and of heads. Blocks are counted from 0 through the whole graph. Values in
    subgraphs are left out, because they cannot be read from outside.

    Returns:
        Labels such as "block 3 / mlp / output", by value name, in the order of the data.
    """
    labels: dict[str, str] = {}
    placed: set[str] = set()
    for number, block in enumerate(structure.blocks):
        place = f"block {number}"
        for kind, outputs in (
            ("attention", [each.output.linear.output if each.output else each.context for each in block.attentions]),
            ("mlp", [each.down.output for each in block.mlps]),
            ("convolution", [each.final for each in block.convolutions]),
        ):
            for index, output in enumerate(outputs):
                labels[output] = f"{place} / {kind}{f' {index}' if len(outputs) > 1 else ''} / output"
        labels[block.output] = f"{place} / output"
        placed |= {convolution.output for convolution in block.convolutions}
    for number, convolution in enumerate(structure.convolutions):
        if convolution.output not in placed and not convolution.nested:
            labels.setdefault(convolution.final, f"convolution {number} / output")
    for number, layer in enumerate(structure.recurrent):
        if not layer.nested:
            labels.setdefault(layer.output, f"{layer.op_type.lower()} {number} / output")
    for number, head in enumerate(structure.heads):
        labels.setdefault(head.value, f"head{f' {number}' if len(structure.heads) > 1 else ''} / output")
    return labels


def _linears_of(residual: Residual) -> list[Linear]:
    found = [linear for mlp in residual.mlps for linear in (mlp.up, mlp.gate, mlp.down) if linear is not None]
    for attention in residual.attentions:
        projections = (attention.query, attention.key, attention.value, attention.output)
        found += [projection.linear for projection in projections if projection is not None]
    return found


def _describe_blocks(stream: Stream) -> str:
    blocks = stream.blocks
    text = f"{_count(len(blocks), 'block')} of width {stream.width}"
    first = blocks[0]
    details: list[str] = (
        [f"{first.norm}-norm"] if first.norm in ("pre", "post") else [first.norm] if first.norm != "none" else []
    )
    attentions = [attention for block in blocks for attention in block.attentions]
    mlps = [mlp for block in blocks for mlp in block.mlps]
    if attentions:
        each = attentions[0]
        groups = f" ({each.kv_heads} for keys and values)" if each.grouped else ""
        details.append(
            f"{'causal ' if each.causal else ''}attention with {each.heads} heads{groups} of {each.head_dim}"
        )
    if mlps:
        details.append(f"{'gated ' if mlps[0].gated else ''}{mlps[0].activation} MLP of {mlps[0].width}")
    return f"{text}: {', '.join(details)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _plain(record: Any) -> Any:
    if is_dataclass(record) and not isinstance(record, type):
        names = [field.name for field in fields(record)]
        derived = [name for name, member in vars(type(record)).items() if isinstance(member, property)]
        return {name: _plain(getattr(record, name)) for name in (*names, *derived)}
    if isinstance(record, tuple | list):
        return [_plain(item) for item in record]
    return record
