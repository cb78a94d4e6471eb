"""The method: finds blocks, asks the mathematics which filters images need, and writes that into a copy of a graph."""

import math

import numpy as np

from edgesmith import Context, Method, Model, Verdict
from edgesmith.graph.edit import GraphEditor
from edgesmith_ftwt.blocks import Block, find_blocks
from edgesmith_ftwt.gates import Narrowing, write_fewer, write_gather, write_mask
from edgesmith_ftwt.masks import Mask, Matrix, strongest_by_count, strongest_by_mass
from edgesmith_ftwt.options import Options
from edgesmith_ftwt.predictor import features, train
from edgesmith_ftwt.statistics import Seen, look

_FIRST_OPSET = 13
"""ReduceSum takes its axes as an input from then on."""


class GateChannels(Method[Options]):
    """Chooses filters image by image."""

    def check(self, model: Model, context: Context[Options]) -> Verdict:
        """Return whether there is a block to gate, and data to see what images need."""
        opset = model.graph.opset_imports.get("", 0)
        if opset < _FIRST_OPSET:
            return Verdict.refuse(f"its opset is {opset}, and gates need {_FIRST_OPSET}: export it anew")
        blocks, reasons = find_blocks(model.graph, context.options.skip)
        if not blocks:
            why = next(iter(reasons.values()), "there is no Conv")
            return Verdict.skip(f"no convolution reads filters that can be switched: {why}", tuple(reasons))
        if context.calibration is None:
            return Verdict.refuse("which filters images need is seen on calibration data: pass some")
        return Verdict.ok(nodes=tuple(block.name for block in blocks))

    def apply(self, model: Model, context: Context[Options]) -> Model:
        """Return the model with gates in it, or with fewer filters."""
        if context.calibration is None:  # `check` refuses such a run
            raise ValueError("no calibration data")
        result = model.clone()
        editor = GraphEditor(result.graph)
        blocks, reasons = find_blocks(result.graph, context.options.skip)
        for name, reason in reasons.items():
            context.notes.skip(name, reason)
        seen = look(model, blocks, context.calibration, context)
        gates = _Gates(editor, context)
        for block in context.progress.track(blocks, "gating"):
            gates.write(block, seen[block.name])
        if context.options.form == "masked":
            context.notes.remark("Masks save no time: all filters run, and the predictors with them.")
        return result


class _Gates:
    """Writes gates in the order of the graph. Each predictor is trained on what the gates before it let through."""

    def __init__(self, editor: GraphEditor, context: Context[Options]) -> None:
        self._editor, self._options, self._notes = editor, context.options, context.notes
        self._chosen: dict[str, Mask] = {}
        self._narrowings: dict[str, Narrowing] = {}

    def write(self, block: Block, seen: Seen) -> None:
        """Gate one block, and say what its images need."""
        wanted = _wanted(seen.responses, self._options)
        share = f"{block.name}: images need {wanted.mean():.0%} of {block.filters} filters"
        if self._options.form == "static":
            self._narrow(block, wanted, share)
        else:
            self._predict(block, seen, wanted, share)

    def _narrow(self, block: Block, wanted: Mask, share: str) -> None:
        frequency = wanted.mean(axis=0)
        count = self._rounded(int((frequency >= self._options.needed_by).sum()), block)
        kept = np.flatnonzero(strongest_by_count(frequency[np.newaxis], count)[0])
        if len(kept) == block.filters:
            self._notes.skip(block.name, "each filter is needed often enough")
            return
        write_fewer(self._editor, block, kept)
        self._notes.remark(f"{share}; {len(kept)} stay.")

    def _rounded(self, count: int, block: Block) -> int:
        multiple = self._options.multiple
        return min(-(-max(count, 1) // multiple) * multiple, block.filters)

    def _predict(self, block: Block, seen: Seen, wanted: Mask, share: str) -> None:
        options, source, gated = self._options, str(block.source.name), str(block.gated.name)
        count = self._rounded(math.ceil(float(wanted.mean()) * block.filters), block)
        gathers = options.form == "gathered"
        if gathers and count == block.filters:
            self._notes.skip(block.name, "images need every filter")
            return
        visible = features(seen.pooled, self._chosen.get(source), softmax=options.softmax, gone=gathers)
        predictor = train(visible, wanted, options.steps)
        if gathers:
            before = self._narrowings.get(source)
            self._narrowings[gated] = write_gather(self._editor, block, predictor, options, count, before)
            self._chosen[gated] = predictor.highest(visible, count)
        else:
            write_mask(self._editor, block, predictor, options)
            self._chosen[gated] = predictor.chosen(visible)
        self._notes.remark(
            f"{share}; {self._chosen[gated].mean():.0%} are chosen. {predictor.agreement:.0%} of decisions on images "
            f"held out were right, {predictor.constant_agreement:.0%} without a look at them."
        )


def _wanted(responses: Matrix, options: Options) -> Mask:
    if options.choose == "share":
        return strongest_by_count(responses, max(1, round(options.share * responses.shape[1])))
    return strongest_by_mass(responses, options.mass)
