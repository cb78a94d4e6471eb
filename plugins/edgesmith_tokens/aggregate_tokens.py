"""The method `aggregate-tokens`: a pyramid of fewer and fewer tokens in vision transformers."""

from itertools import accumulate

import onnx_ir as ir

from edgesmith.errors import EdgesmithError, StepError
from edgesmith.execution.observe import fixed_batch
from edgesmith.graph.opset import raise_opset
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Method
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_tokens.aggregation.places import find_places, grid_of
from edgesmith_tokens.aggregation.pyramid import Pyramid
from edgesmith_tokens.finding.vision import VisionStream, find_vision_streams
from edgesmith_tokens.options.aggregation import AggregateTokensOptions
from edgesmith_tokens.tokens.definition import by_definition
from edgesmith_tokens.tokens.reduction import obstacle_to_fewer
from edgesmith_tokens.tokens.writer import OPSET

AggregationContext = Context[AggregateTokensOptions]

_NOTHING_ASKED = Verdict.skip("no token is to go; set keep below 1, and name blocks that exist with at")


class AggregateTokens(Method[AggregateTokensOptions]):
    """Replaces patch tokens by fewer means of them, at chosen blocks of any vision transformer."""

    def check(self, model: Model, context: AggregationContext) -> Verdict:
        """Return whether there are tokens that can become fewer, and what the form needs."""
        if _asks_nothing(context.options):
            return _NOTHING_ASKED
        try:
            graph = by_definition(model.ir)
            streams = _streams(graph, context.options)
            if not streams:
                return _without_places(graph, context.options)
            problem = _problem(graph, streams, context)
        except EdgesmithError as error:
            return Verdict.refuse(f"{error.what}; {error.fix}")
        if problem:
            return Verdict.refuse(problem)
        return Verdict.ok(nodes=tuple(block.attention.softmax for stream in streams for block in stream.blocks))

    def apply(self, model: Model, context: AggregationContext) -> Model:
        """Return the model with fewer tokens.

        Raises:
            DataError: The form needs calibration data and there is none, or it makes an activation infinite or NaN.
            StepError: The form does not fit the model.
        """
        if _asks_nothing(context.options):
            return model.with_ir(model.ir.clone())
        result = by_definition(model.ir.clone())
        raise_opset(result, OPSET)
        streams = _streams(result, context.options)
        problem = _problem(result, streams, context)
        if problem:
            raise StepError(
                f"tokens cannot be aggregated: {problem}",
                expected="what the form needs, as `check` says",
                why="no means can be made without",
                fix="choose another form, or give it what it needs",
            )
        for stream in streams:
            result = Pyramid(result, stream, find_places(stream, context.options), context).build()
        return model.with_ir(result)


def _asks_nothing(options: AggregateTokensOptions) -> bool:
    shares = options.keep if isinstance(options.keep, tuple) else (options.keep,)
    return options.at == () or all(share >= 1 for share in shares)


def _streams(model: ir.Model, options: AggregateTokensOptions) -> list[VisionStream]:
    """Return the streams in which tokens are to become fewer, with those where something stands in the way of that.

    Raises:
        StepError: A block that is named does not exist.
    """
    structure = find_structure(model)
    found = find_vision_streams(model, structure, protected=options.protected)
    starts = accumulate((len(stream.blocks) for stream in structure.streams), initial=0)
    numbers = {
        stream.input: range(start, start + len(stream.blocks))
        for stream, start in zip(structure.streams, starts, strict=False)
    }
    # A stream with an obstacle lists blocks up to that only, but has the others too.
    known = {number for stream in found for number in numbers[stream.input]}
    missing = sorted(set(options.at or ()) - known)
    if found and missing:
        raise StepError(
            f"block {missing[0]} is no block of a vision transformer",
            expected=f"numbers from {min(known, default=0)} to {max(known, default=0)}",
            why="the option at says where tokens become fewer",
            fix="list the blocks with `edgesmith inspect` and correct the option at",
        )
    return [
        stream
        for stream in found
        if (_is_asked(numbers[stream.input], options) if stream.obstacle else find_places(stream, options))
    ]


def _is_asked(numbers: range, options: AggregateTokensOptions) -> bool:
    return options.at is None or any(number in numbers for number in options.at)


def _without_places(model: ir.Model, options: AggregateTokensOptions) -> Verdict:
    """Return why there is no place where tokens become fewer."""
    if not find_vision_streams(model, find_structure(model), protected=options.protected):
        return Verdict.skip("the graph has no stream of tokens that come from patches of an image")
    return _NOTHING_ASKED


def _problem(model: ir.Model, streams: list[VisionStream], context: AggregationContext) -> str:
    """Return why tokens cannot be aggregated, and what would work; empty where they can."""
    options, data = context.options, context.calibration
    for stream in streams:
        reason = obstacle_to_fewer(model, stream)
        if reason:
            return reason
        if stream.first and not stream.patches:
            return f"the tokens of {stream.input} are means of patches already; name all places in one step with at"
        if grid_of(stream, options) is None and (options.form == "pool" or options.grid is not None):
            patches = stream.tokens - stream.protected
            return (
                f"the rows and columns of {patches} patches are not known; give them with the option grid, or set form "
                "to cluster, which needs none"
            )
    if not options.needs.data:
        return ""
    if not data:
        return f"the form {options.form} looks at calibration data; pass it with --data, or set form to pool"
    if options.form != "learned":
        return ""
    fixed = fixed_batch(model) or 1
    if min(len(data), options.samples) < 2 * fixed:
        return f"learned needs {2 * fixed} calibration samples, to train on and to decide by; pass more with --data"
    return ""
