"""The method `remove-blocks`: leaves out blocks of residual streams and makes up for them in closed form."""

from collections.abc import Mapping

import onnx_ir as ir

from edgesmith.errors import EdgesmithError, StepError
from edgesmith.execution.observe import fixed_batch
from edgesmith.execution.unpadded import find_mask, find_padding
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Method
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_calibration.sources import DataSource
from edgesmith_folding.calibration import calibration_data
from edgesmith_folding.choice import Choice, Ground, choose, draw
from edgesmith_folding.compensation.correct import Running, correct
from edgesmith_folding.compensation.sites import Site, drop_site, folded_site, product_site
from edgesmith_folding.compensation.solve import Solution
from edgesmith_folding.finding.places import Place, find_places, runs
from edgesmith_folding.merging import merge_runs
from edgesmith_folding.options.removal import RemoveBlocksOptions
from edgesmith_folding.removal import remove_run
from edgesmith_folding.running.chain import BlockChain
from edgesmith_folding.running.judge import Judge, language_model_of
from edgesmith_folding.running.streams import Streams
from edgesmith_folding.training.gated import fold_gates

RemovalContext = Context[RemoveBlocksOptions]
Places = Mapping[int, Place]

_NOT_FOLDED = (
    "a gate of this block is not folded: no projection of its own weights ends the branch without a normalization or a "
    "scale behind it"
)


class RemoveBlocks(Method[RemoveBlocksOptions]):
    """Removes blocks of any network with residual streams."""

    def check(self, model: Model, context: RemovalContext) -> Verdict:
        """Return whether there are blocks that may go, and what scores and compensation need."""
        options, data = context.options, context.calibration
        if options.blocks == () or (options.blocks is None and options.count == 0):
            return Verdict.skip("no block is to be removed; set ratio, count or blocks")
        if options.reads_data and not data:
            return Verdict.refuse(
                "scores and compensation look at calibration data; pass it with --data, or set score to random (or "
                "name blocks) and compensation to none"
            )
        try:
            structure = find_structure(model.ir)
            places = _by_number(model.ir, structure)
            if not places:
                return Verdict.skip("the graph has no residual stream with blocks")
            chosen = _named(options, places) if options.blocks is not None else _candidates(options, places, context)
        except EdgesmithError as error:
            return Verdict.refuse(f"{error.what}; {error.fix}")
        if not chosen:
            return Verdict.skip(_why_none(options, places))
        if options.chooses and options.score == "taylor" and language_model_of(model.ir, structure) is None:
            return Verdict.refuse(
                "the score taylor needs the loss of a causal language model, and no output holds logits at each "
                "position; choose another score, such as sleb"
            )
        return Verdict.ok(nodes=tuple(each.block.residuals[-1].node for each in chosen.values()))

    def apply(self, model: Model, context: RemovalContext) -> Model:
        """Return the model without the blocks.

        Raises:
            DataError: There is no calibration data, or it makes an activation infinite or NaN.
            StepError: A block that is named does not exist or cannot go, or none can.
        """
        options, folded = context.options, model.ir.clone()
        structure = find_structure(folded)
        places = _by_number(folded, structure)
        data = None
        if options.reads_data:
            data = calibration_data(model.ir, structure.attentions, context, options.samples)
        choice = _chosen(model.ir, structure, places, data, context)
        chosen = tuple(sorted(set(choice.blocks)))
        if not chosen:
            return model.with_ir(folded)
        context.notes.remark(f"Removed {len(chosen)} of {len(places)} blocks: {', '.join(map(str, chosen))}.")
        slots = [cache for number in chosen for cache in places[number].caches]
        if slots:
            gone = ", ".join(f"{cache.input.name}, {cache.output.name}" for cache in slots)
            context.notes.remark(
                f"Their slots of the cache went, inputs and outputs: {gone}. All others keep their names."
            )
        if choice.gates and options.fold_gates:
            for number in fold_gates(folded.graph, choice.gates, places):
                context.notes.skip(places[number].block.residuals[-1].node, _NOT_FOLDED)
        parts = runs(chosen, places)
        if options.merge != "none":
            merge_runs(folded, parts, places, released=options.merge == "laco-release", notes=context.notes)
        sites = _sites(folded, parts, places, options)
        if data is not None:
            remark = _compensate(model.ir, folded, sites, data, context)
            if remark:
                context.notes.remark(remark)
        return model.with_ir(folded)


def _by_number(model: ir.Model, structure: Structure) -> Places:
    return {place.number: place for place in find_places(model, structure)}


def _chosen(
    model: ir.Model, structure: Structure, places: Places, data: DataSource | None, context: RemovalContext
) -> Choice:
    """Return the blocks to remove."""
    options = context.options
    if options.blocks is not None:
        return Choice(tuple(_named(options, places)))
    candidates = _candidates(options, places, context)
    if options.count == 0 or not candidates:
        return Choice(())
    # Positions and masks of a decoder follow from the length of a cache, so one block keeps its own.
    spare = int(len(candidates) == len(places) and any(place.caches for place in places.values()))
    wanted = _count(options, places)
    count = min(wanted, len(candidates) - spare)
    if count < wanted:
        context.notes.remark(
            f"{wanted} blocks were asked for and {count} can go: ends of streams, protected blocks, obstacles and the "
            "last cache keep the others."
        )
    if count == 0:
        return Choice(())
    if data is None:
        return draw(candidates, count, context.seed)
    # The places of this graph, not of the copy that will change.
    own = _by_number(model, structure)
    chain = BlockChain(model, list(own.values()), threads=context.threads)
    few, each = data.take(options.score_samples), options.batch_size
    judge = Judge(model, structure, chain, few, batch_size=each, tokens=options.score_tokens)
    causal = bool(structure.attentions) and all(attention.causal for attention in structure.attentions)
    mask = find_mask(model, structure.attentions)
    # Where several inputs hide padding, nobody knows the last token, and all of them count.
    causal = causal and (mask is not None or not find_padding(model, structure.attentions)[1])
    streams = Streams(model, data, context.scratch, options.batch_size, context.threads, causal, mask)
    tried = {number: own[number] for number in candidates}
    choice = choose(options, Ground(model, own, tried, count, data, judge, streams, context.progress, context.seed))
    if choice.remark:
        context.notes.remark(choice.remark)
    return choice


def _count(options: RemoveBlocksOptions, places: Places) -> int:
    return max(1, int(options.ratio * len(places))) if options.count is None else options.count


def _candidates(options: RemoveBlocksOptions, places: Places, context: RemovalContext) -> Places:
    found = {}
    for number, place in places.items():
        if place.from_start < options.keep_first or place.from_end < options.keep_last:
            continue
        if number in options.protect_blocks:
            continue
        if place.obstacle:
            context.notes.skip(place.block.residuals[-1].node, place.obstacle)
            continue
        found[number] = place
    return found


def _named(options: RemoveBlocksOptions, places: Places) -> Places:
    """Return the blocks that the options name.

    Raises:
        StepError: One does not exist or cannot go.
    """
    for number in options.blocks or ():
        reason = "it does not exist" if number not in places else places[number].obstacle
        if reason:
            raise StepError(
                f"block {number} cannot be removed: {reason}",
                expected=f"numbers of removable blocks from 0 to {len(places) - 1}",
                why="the option blocks says which blocks go",
                fix="list the blocks with `edgesmith inspect` and correct the option blocks",
            )
    if set(options.blocks or ()) == set(places) and any(place.caches for place in places.values()):
        raise StepError(
            "all blocks are to be removed, and with them all caches of keys and values",
            expected="one block at least that stays",
            why="positions and masks of a decoder follow from the length of a cache",
            fix="leave one number out of the option blocks",
        )
    return {number: places[number] for number in options.blocks or ()}


def _why_none(options: RemoveBlocksOptions, places: Places) -> str:
    obstacles = [place.obstacle for place in places.values() if place.obstacle]
    if obstacles:
        return f"none of the {len(places)} blocks may go; {obstacles[0]}"
    return (
        f"none of the {len(places)} blocks may go; lower keep_first ({options.keep_first}), keep_last "
        f"({options.keep_last}), or protect fewer"
    )


def _sites(
    folded: ir.Model, parts: tuple[tuple[Place, ...], ...], places: Places, options: RemoveBlocksOptions
) -> list[Site]:
    """Remove the runs and return where least squares may make up for them, in the order of the data."""
    removed = {place.number for run in parts for place in run}
    found: dict[int, Site] = {}
    for run in parts:
        before, target = places.get(run[0].number - 1), run[-1].block.output
        fits = before is not None and before.block.output == run[0].block.input and not run[0].convolutional
        site = None
        if (
            fits
            and before is not None
            and options.compensation in ("auto", "folded")
            and _read_by_run_only(folded, run)
        ):
            site = folded_site(folded.graph, before, target)
        width = _width(folded, run)
        if site is None and options.compensation in ("auto", "product") and width is not None:
            site = product_site(folded.graph, run, width)
        else:
            remove_run(folded.graph, run)
        if site is not None:
            found[run[0].number] = site
        following = range(run[-1].number + 1, run[-1].number + 1 + options.repair_blocks)
        for number in (each for each in following if each in places and each not in removed and each not in found):
            # The block before the next run is solved for what stands behind that run.
            repaired = None
            if number + 1 not in removed or options.compensation in ("product", "none"):
                repaired = folded_site(folded.graph, places[number], places[number].block.output)
            if repaired is not None:
                found[number] = repaired
    return [found[number] for number in sorted(found)]


def _compensate(given: ir.Model, folded: ir.Model, sites: list[Site], data: DataSource, context: RemovalContext) -> str:
    """Solve the sites, take out those that are not used, and return what to report."""
    options = context.options
    if not sites:
        wanted = options.compensation != "none" or options.repair_blocks > 0
        return "Nothing makes up for them: no output projection stands where one could." if wanted else ""
    running = Running(data, context.scratch, fixed_batch(given) or options.batch_size, context.threads)
    if running.batches < 2:
        for site in sites:
            drop_site(folded.graph, site)
        return "Nothing makes up for them: that takes two or more batches, one of them to judge by."
    solutions = correct(given, folded, sites, running, options.ridge)
    for site, solution in zip(sites, solutions, strict=True):
        if not solution.better:
            drop_site(folded.graph, site)
    return _report(sites, solutions)


def _read_by_run_only(model: ir.Model, run: tuple[Place, ...]) -> bool:
    """Whether nothing but the run reads the stream before it, so that it may become what stands behind the run."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    source = values[run[0].block.input]
    return not source.is_graph_output() and all(user in run[0].nodes for user in source.consumers())


def _width(model: ir.Model, run: tuple[Place, ...]) -> int | None:
    """Return the channels of a stream whose last axis holds them, or None."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    value = values[run[-1].block.output]
    kinds = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    if run[0].convolutional or value.shape is None or value.shape.rank() < 2 or value.dtype not in kinds:
        return None
    last = value.shape[-1]
    return last if isinstance(last, int) else None


def _report(sites: list[Site], solutions: list[Solution]) -> str:
    parts = []
    for site, solution in zip(sites, solutions, strict=True):
        errors = f"{solution.before:.2%} to {solution.after:.2%}"
        parts.append(f"{site.place} ({site.form}): {errors}" + ("" if solution.better else ", left as it was"))
    return "Error on samples held out, as a share of what each layer should add: " + "; ".join(parts) + "."
