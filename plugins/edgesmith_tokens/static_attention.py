"""The method `static-attention`: a constant map in place of the attention that hardly looks at the image."""

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from edgesmith.data import required_data
from edgesmith.errors import EdgesmithError, StepError
from edgesmith.execution.observe import fixed_batch
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.outputs import float_outputs
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Method
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_calibration.sources import DataSource
from edgesmith_tokens.options.static import StaticAttentionOptions
from edgesmith_tokens.static.measure import (
    Forms,
    StaticMap,
    Verifier,
    greedy_choice,
    held_out,
    judging_samples,
    measure_maps,
)
from edgesmith_tokens.static.rewrite import replace_attention
from edgesmith_tokens.static.sites import Site, find_sites
from edgesmith_tokens.tokens.definition import by_definition

StaticContext = Context[StaticAttentionOptions]


class StaticAttention(Method[StaticAttentionOptions]):
    """Replaces softmax(Q K^T) of some blocks by one matrix for each head, so that Q, K and softmax go."""

    def check(self, model: Model, context: StaticContext) -> Verdict:
        """Return whether there are attention layers whose maps can be constants."""
        options, data = context.options, context.calibration
        if options.blocks == () or options.count == 0:
            return Verdict.skip("no block is to get a static map; set count or blocks")
        if not data:
            return Verdict.refuse("static maps are means over calibration data; pass it with --data")
        try:
            graph = by_definition(model.ir)
            sites = find_sites(graph, find_structure(graph))
            if not sites:
                return Verdict.skip("the graph has no blocks with attention")
            usable = _usable(sites, options)
            if usable and options.choose == "greedy" and options.blocks is None:
                _require_comparable(graph)
            if usable and options.epochs > 0:
                problem = _training_problem(graph, data, options)
                if problem:
                    return Verdict.refuse(problem)
        except EdgesmithError as error:
            return Verdict.refuse(f"{error.what}; {error.fix}")
        if not usable:
            return Verdict.refuse(f"no attention can be static: of {sites[0].label}, {sites[0].obstacle}")
        return Verdict.ok(nodes=tuple(site.attention.context_node for site in usable))

    def apply(self, model: Model, context: StaticContext) -> Model:
        """Return the model with static maps.

        Raises:
            DataError: There is no calibration data, or it makes attention infinite or NaN.
            StepError: A block that is named has no attention that can be static, or greedy has no outputs to compare.
            UnsupportedOperatorError: The maps are to be trained, and the graph has an operator that torch cannot run.
        """
        options, unchanged = context.options, model.ir.clone()
        if options.blocks == () or options.count == 0:
            return model.with_ir(unchanged)
        given = by_definition(model.ir)
        data = required_data(context.calibration, "static maps", why="they are means over what attention does on it")
        structure = find_structure(given)
        found = find_sites(given, structure)
        sites = _usable(found, options)
        for site in found:
            if site.obstacle and (options.blocks is None or site.block in options.blocks):
                context.notes.skip(site.attention.context_node, site.obstacle)
        data = data.take(options.samples)
        maps = _chosen_maps(given, sites, data, context) if sites else ()
        if not maps:
            context.notes.remark("No block got a static map.")
            return model.with_ir(unchanged)
        written = given.clone()
        names = _write(written, maps)
        context.notes.remark(_account(given, written, maps, len(data)))
        if options.epochs > 0:
            _train(given, written, structure, dict(zip(names, maps, strict=True)), context)
        return model.with_ir(written)


def _usable(sites: Sequence[Site], options: StaticAttentionOptions) -> tuple[Site, ...]:
    """Return the layers that may become static.

    Raises:
        StepError: A block that the options name is not among them.
    """
    usable = tuple(site for site in sites if not site.obstacle)
    if options.blocks is None:
        return usable
    reasons = {site.block: site.obstacle for site in sites}
    for number in options.blocks:
        if reasons.get(number, "it has no attention"):
            raise StepError(
                f"the attention of block {number} cannot be static: {reasons.get(number, 'it has none')}",
                expected="numbers of blocks with bidirectional attention over a fixed number of tokens",
                why="the option blocks says which blocks get a static map",
                fix="list the blocks with `edgesmith inspect` and correct the option blocks",
            )
    return tuple(site for site in usable if site.block in options.blocks)


def _require_comparable(model: ir.Model) -> None:
    """Refuse a greedy choice by outputs that have no distance.

    Raises:
        StepError: No output is of floats.
    """
    if not float_outputs(model.graph):
        raise StepError(
            "greedy has no outputs to compare: none is of floats",
            expected="scores or features among the outputs",
            why="each choice is the one that moves the outputs least, and class numbers have no distance",
            fix="set the option choose to threshold or first, or give the graph its scores as an output",
        )


def _chosen_maps(
    model: ir.Model, sites: tuple[Site, ...], data: DataSource, context: StaticContext
) -> tuple[StaticMap, ...]:
    """Return the maps to write, each measured behind those before it."""
    options = context.options
    count = max(1, len(sites) // 3) if options.count is None else options.count
    if options.blocks is not None:
        chosen = sites
    elif options.choose == "first":
        chosen = sites[:count]
    else:
        choose = _greedy if options.choose == "greedy" else _alike
        chosen = tuple(sites[index] for index in sorted(choose(model, sites, data, count, context)))
    return tuple(_measure(model, chosen, data, context, replaced=True)) if chosen else ()


def _alike(
    model: ir.Model, sites: Sequence[Site], data: DataSource, count: int, context: StaticContext
) -> Sequence[int]:
    """Return the layers whose maps are alike enough from sample to sample, and fit, by index, the most alike first."""
    options = context.options
    # No map is kept: two numbers for each layer decide.
    measured = [(each.similarity, each.error) for each in _measure(model, sites, data, context, replaced=False)]
    alike, errors = zip(*measured, strict=True)
    seen = ", ".join(f"block {site.block} {similarity:.3f}" for site, similarity in zip(sites, alike, strict=True))
    context.notes.remark(f"Similarity of maps from sample to sample: {seen}.")
    order = sorted(range(len(sites)), key=lambda index: -alike[index])
    similar = [index for index in order if alike[index] >= options.threshold]
    limit = options.max_layer_error
    unfit = [] if limit is None else [index for index in similar if errors[index] > limit]
    if unfit:
        named = ", ".join(f"block {sites[index].block} {errors[index]:.3f}" for index in unfit)
        context.notes.remark(f"Alike, but with an error of the layer above max_layer_error ({limit}): {named}.")
    return [index for index in similar if index not in unfit][:count]


def _greedy(
    model: ir.Model, sites: Sequence[Site], data: DataSource, count: int, context: StaticContext
) -> Sequence[int]:
    """Return layers, by index, chosen one after another by how far the outputs move."""
    _require_comparable(model)
    options = context.options
    maps = _measure(model, sites, data, context, replaced=False)
    judged = judging_samples(data, options.verify_samples, fixed_batch(model) or 1)
    verifier = Verifier(model, sites, maps, judged, batch_size=options.batch_size, threads=context.threads)
    order = greedy_choice(count, len(sites), verifier.error, options.max_error)
    steps = ", ".join(f"block {sites[index].block} {error:.3f}" for index, error in order)
    context.notes.remark(f"Error of the outputs behind each choice: {steps or 'none was small enough'}.")
    return [index for index, _ in order]


def _measure(
    model: ir.Model, sites: Sequence[Site], data: DataSource, context: StaticContext, *, replaced: bool
) -> Iterator[StaticMap]:
    options = context.options
    # Trained maps are softmaxes, so they start from the one form whose rows sum to 1.
    forms = Forms("mean" if options.epochs > 0 else options.form, options.bias, options.ridge)
    return measure_maps(
        model,
        sites,
        data,
        forms,
        replaced=replaced,
        scratch=context.scratch,
        batch_size=options.batch_size,
        threads=context.threads,
    )


def _write(written: ir.Model, maps: Sequence[StaticMap]) -> tuple[str, ...]:
    editor = GraphEditor(written.graph)
    return tuple(replace_attention(editor, each.site, each.map, each.bias) for each in maps)


def _account(given: ir.Model, written: ir.Model, maps: Sequence[StaticMap], samples: int) -> str:
    """Return what each block got, with both errors, and what that costs in weights."""
    lines = []
    for each in maps:
        errors = ", ".join(f"{name} {error:.4f}" for name, error in each.errors.items())
        lines.append(f"block {each.site.block} {each.form} (similarity {each.similarity:.3f}; error {errors})")
    added = sum(each.map.size + (0 if each.bias is None else each.bias.size) for each in maps)
    gone = _numbers(given) + added - _numbers(written)
    judged = "held out" if held_out(samples).size else "that the maps are made from, since they are too few to hold out"
    rest = f"{gone:,} of queries and keys went" if gone >= 0 else f"parts of weights that others share add {-gone:,}"
    return (
        f"Static maps: {'; '.join(lines)}. Errors are those of the output of each attention "
        f"relative to its size, on samples {judged}. The maps add {added:,} numbers, and {rest}."
    )


def _numbers(model: ir.Model) -> int:
    return sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value is not None)


def _training_problem(model: ir.Model, data: DataSource, options: StaticAttentionOptions) -> str:
    """Return why maps cannot be trained, or an empty string.

    Raises:
        UnsupportedOperatorError: Torch cannot run the graph.
    """
    from edgesmith.execution.torch_graph import TorchGraph

    needed = 2 * (fixed_batch(model) or 1)
    if min(len(data), options.samples) < needed:
        return f"training takes {needed} samples or more, to learn from and to decide by; pass more with --data"
    TorchGraph(model)
    return ""


def _train(
    given: ir.Model, written: ir.Model, structure: Structure, maps: Mapping[str, StaticMap], context: StaticContext
) -> None:
    from edgesmith_tokens.static.training import train_maps

    last = max(each.site.block for each in maps.values())
    context.notes.remark(train_maps(given, written, maps, structure.blocks[last].output, context))
