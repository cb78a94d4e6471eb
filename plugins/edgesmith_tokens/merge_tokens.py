"""The method `merge-tokens`: joins tokens of vision transformers that are alike, block by block."""

from collections.abc import Sequence

import onnx_ir as ir

from edgesmith.errors import EdgesmithError, StepError
from edgesmith.graph.opset import raise_opset
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Method
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_tokens.finding.vision import VisionStream, find_vision_streams
from edgesmith_tokens.merging.budget import choose_counts
from edgesmith_tokens.merging.formula import most_merged
from edgesmith_tokens.merging.place import MergeForm, merge_stream
from edgesmith_tokens.merging.schedule import constant, decreasing, fitted, listed, shared_out
from edgesmith_tokens.options.merging import MergeTokensOptions
from edgesmith_tokens.tokens.definition import by_definition
from edgesmith_tokens.tokens.reduction import obstacle_to_fewer
from edgesmith_tokens.tokens.writer import OPSET

MergeContext = Context[MergeTokensOptions]

_LARGEST_TOP = 3839
"""Most entries that TensorRT's TopK returns. A set of tokens must not be larger, here for all targets alike."""


class MergeTokens(Method[MergeTokensOptions]):
    """Merges tokens of every vision transformer in a graph."""

    def check(self, model: Model, context: MergeContext) -> Verdict:
        """Return whether there is a vision transformer whose tokens may become fewer."""
        options = context.options
        try:
            graph = by_definition(model.ir)
            streams = _streams(graph, options)
            if not streams:
                return Verdict.skip("the graph has no stream of tokens that come from patches of an image")
            reasons = [_obstacle(graph, stream) for stream in streams]
        except EdgesmithError as error:
            return Verdict.refuse(f"{error.what}; {error.fix}")
        open_streams = [stream for stream, reason in zip(streams, reasons, strict=True) if not reason]
        if not open_streams:
            return Verdict.refuse(reasons[0])
        if not any(most_merged(stream.tokens, stream.protected) for stream in open_streams):
            return Verdict.skip("there are no two patches to merge; use larger images")
        if options.speedup is not None:
            return _measurable(context, open_streams)
        if not any(any(_counts(options, stream)) for stream in open_streams):
            return Verdict.skip("no block is to merge any token; raise ratio or r, or name counts")
        return Verdict.ok(nodes=tuple(block.attention.softmax for block in open_streams[0].blocks))

    def apply(self, model: Model, context: MergeContext) -> Model:
        """Return the model with merged tokens.

        Raises:
            DataError: Counts are to be chosen and there is no calibration data.
            MeasurementError: Counts are to be chosen and nothing is timed in this run.
            StepError: A node cannot work on fewer tokens.
        """
        options, merged = context.options, by_definition(model.ir.clone())
        form = MergeForm(options.form, options.metric, options.score, options.proportional, context.seed)
        raise_opset(merged, OPSET)
        whole = model.with_ir(merged.clone())
        streams = _streams(whole.ir, options)
        for stream in streams:
            reason = _obstacle(whole.ir, stream) if len(streams) > 1 else ""
            if reason:
                context.notes.skip(stream.blocks[0].attention.softmax if stream.blocks else stream.input, reason)
                continue
            if options.speedup is None:
                counts = _counts(options, stream)
            else:
                counts = choose_counts(whole, stream, form, context, given=model)
            if not any(counts):
                continue
            left = merge_stream(merged, stream, counts, form)
            first, last, after = stream.blocks[0].number, stream.blocks[-1].number, stream.tokens - sum(counts)
            context.notes.remark(
                f"Merged {sum(counts)} of {stream.tokens} tokens ({stream.protected} protected); attention of blocks "
                f"{first} to {last} has {', '.join(map(str, left))}, and {after} leave block {last}."
            )
            if short := _shortage(options, stream, counts):
                context.notes.remark(short)
        return model.with_ir(merged)


def _streams(model: ir.Model, options: MergeTokensOptions) -> tuple[VisionStream, ...]:
    """Return the streams.

    Raises:
        StepError: There are counts for more blocks than any of them has.
    """
    found = find_vision_streams(model, find_structure(model), protected=options.protected)
    given, blocks = len(options.counts or ()), max((each.first + len(each.stream.blocks) for each in found), default=0)
    if found and given > blocks:
        raise StepError(
            f"counts has {given} numbers for {blocks} blocks",
            expected="at most one number for each block",
            why="no block would take the others",
            fix="list the blocks with `edgesmith inspect` and correct the option counts",
        )
    return found


def _obstacle(model: ir.Model, stream: VisionStream) -> str:
    if stream.tokens // 2 + 1 > _LARGEST_TOP:
        return f"{stream.tokens} tokens are more than TopK takes ({2 * _LARGEST_TOP}); use smaller images"
    return obstacle_to_fewer(model, stream)


def _measurable(context: MergeContext, streams: Sequence[VisionStream]) -> Verdict:
    if context.trial is None or not context.trial.measures_latency:
        return Verdict.refuse("speedup needs times of the device; name it with --on, or set ratio or r")
    if not context.calibration:
        return Verdict.refuse("speedup compares outputs on calibration data; pass it with --data, or set ratio or r")
    if len(streams) > 1:
        return Verdict.refuse("speedup works on one vision transformer in a graph; set ratio or r")
    return Verdict.ok(nodes=tuple(block.attention.softmax for block in streams[0].blocks))


def _counts(options: MergeTokensOptions, stream: VisionStream) -> tuple[int, ...]:
    """Return how many tokens each block merges."""
    blocks = len(stream.blocks)
    if options.counts is not None:
        wanted = listed(options.counts[stream.first :], blocks)
    elif options.r is not None and options.schedule == "constant":
        wanted = constant(options.r, blocks)
    elif options.schedule == "constant":
        wanted = shared_out(_share(options, stream), blocks, stream.tokens, stream.protected)
    else:
        mean = _share(options, stream) // blocks if options.r is None else options.r
        wanted = decreasing(mean, blocks)
    return fitted(wanted, stream.tokens, stream.protected)


def _share(options: MergeTokensOptions, stream: VisionStream) -> int:
    """Return how many tokens the option ratio asks for."""
    return int(options.ratio * (stream.tokens - stream.protected))


def _shortage(options: MergeTokensOptions, stream: VisionStream, counts: Sequence[int]) -> str:
    """Return what to report where fewer tokens go than the option ratio asks for."""
    if options.speedup is not None or options.r is not None or options.counts is not None:
        return ""
    if sum(counts) >= _share(options, stream):
        return ""
    return (
        f"Those are fewer than the {_share(options, stream)} that ratio asks for: each block merges half of its "
        "unprotected tokens at most, and a decreasing schedule rounds down."
    )
