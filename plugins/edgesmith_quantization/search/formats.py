"""The formats that mixed precision chooses from: methods of this family with options, on any set of nodes."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgesmith.errors import StepError
from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import Selection
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.options.protected import ProtectedSelection
from edgesmith_quantization.options.split import QuantizeSplitOptions
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_fp8 import QuantizeFp8
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.quantize_split import QuantizeSplit
from edgesmith_quantization.quantize_weights import QuantizeWeights

_SECOND_ORDER: Mapping[str, object] = {"rounding": "second-order"}


@dataclass(frozen=True, slots=True)
class Format:
    """A method with options. The options `only` and `skip` of that method say which nodes it rewrites."""

    name: str
    method: type[Method[Any]]
    options: type[Selection]
    values: Mapping[str, object] = field(default_factory=dict)
    refined: Mapping[str, object] = field(default_factory=dict)
    """What the options become for a result: better, and too slow for each of many trials."""

    def check(self, model: Model, context: Context[Any], selection: Selection) -> Verdict:
        """Return whether the target takes this format, with the names of the nodes that it could rewrite."""
        return self.method().check(model, self._context(context, only=selection.only, skip=selection.skip))

    def apply(self, model: Model, context: Context[Any], nodes: Sequence[str], *, refine: bool = False) -> Model:
        """Return `model` with the named nodes in this format, the slow and better way if `refine` is set.

        Raises:
            EdgesmithError: The method refuses these nodes, or fails.
        """
        own = self._context(context, refine=refine, only=tuple(glob.escape(node) for node in nodes))
        verdict = self.method().check(model, own)
        if verdict.status != "ok":
            raise StepError(
                f"{', '.join(nodes[:3])} cannot be in format {self.name}: {verdict.reason}",
                expected="nodes that the format's method takes",
                why="an assignment is only worth what its methods can do",
                fix="leave the format out of the option formats, or name the nodes in the option skip",
            )
        return self.method().apply(model, own)

    def _context(self, context: Context[Any], *, refine: bool = False, **selection: tuple[str, ...]) -> Context[Any]:
        values: dict[str, object] = {**self.values, **(self.refined if refine else {}), **selection}
        if isinstance(context.options, ProtectedSelection):
            values["protect"] = context.options.protect
        if "samples" in self.options.model_fields and context.calibration is not None:
            values["samples"] = max(1, len(context.calibration))
        return replace(context, options=self.options.model_validate(values), trial=None, scoring=None)


FORMATS = (
    Format("int8", QuantizeInt8, QuantizeInt8Options, {"mode": "static"}),
    Format("int8-dynamic", QuantizeInt8, QuantizeInt8Options, {"mode": "dynamic"}),
    # Whether a head may be rounded is for the measurement to say.
    Format("fp8", QuantizeFp8, QuantizeFp8Options, {"heads": True}),
    Format("int8-weights", QuantizeWeights, QuantizeWeightsOptions, {"bits": 8}),
    Format("int4-weights", QuantizeWeights, QuantizeWeightsOptions, {"bits": 4}, _SECOND_ORDER),
    # A float32 scale adds 1 bit to each of 32 weights, and a quarter to each of 128.
    Format("int4-weights-128", QuantizeWeights, QuantizeWeightsOptions, {"bits": 4, "block_size": 128}, _SECOND_ORDER),
    Format("int2-weights", QuantizeWeights, QuantizeWeightsOptions, {"bits": 2}, _SECOND_ORDER),
    Format("int4-split", QuantizeSplit, QuantizeSplitOptions, {"bits": 4}),
    Format("int2-split", QuantizeSplit, QuantizeSplitOptions, {"bits": 2}),
)
"""All formats, in the order in which they are written into one graph: those that take ranges see the float graph."""


def offered(dialect: Dialect) -> tuple[str, ...]:
    """Return the formats to choose from where none are named.

    Left out are those that the target would only simulate, and split forms, which are several codes a weight: they
    are for targets that lack the plain format of as many bits.
    """
    left_out = {"int4-split", "int2-split"} | (set() if dialect.float8 == "hardware" else {"fp8"})
    return tuple(each.name for each in FORMATS if each.name not in left_out)


def compose(
    model: Model, assignment: Mapping[str, Sequence[str]], context: Context[Any], *, refine: bool = False
) -> Model:
    """Return `model` with every node in the format it is assigned to.

    Args:
        model: The float model. It is not changed.
        assignment: Format name to names of nodes, disjoint. Nodes in no format stay in float.
        context: Data and dialect; its notes hear what the methods say.
        refine: Take the slow and better way where a format has one.

    Raises:
        EdgesmithError: A method refuses its nodes, or fails.
    """
    result = model.clone()
    for each in FORMATS:
        nodes = assignment.get(each.name, ())
        if nodes:
            result = each.apply(result, context, nodes, refine=refine)
    return result
