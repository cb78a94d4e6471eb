"""The method `quantize-split`: weights as sums of parts of few bits each (SplitQuant)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgesmith.errors import RecipeError
from edgesmith.graph.edit import GraphEditor, constant_tensor
from edgesmith.graph.node_names import node_name
from edgesmith.graph.opset import raise_opset
from edgesmith.graph.weight_sites import WeightSite, find_weight_sites, leave_alone
from edgesmith.host.context import Context, Notes
from edgesmith.host.dialect import Dialect, WeightFormat
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.serialization import weight_bytes
from edgesmith_quantization.arithmetic.blocks import Weights, dequantize_blocks
from edgesmith_quantization.arithmetic.rounding import Float
from edgesmith_quantization.arithmetic.splitting import (
    SplitScheme,
    SplitWeight,
    round_unsplit,
    signal_to_noise_db,
    split_weight,
)
from edgesmith_quantization.finding.block_sizes import fitting_size, size_obstacle
from edgesmith_quantization.finding.protected_layers import find_protected, marked
from edgesmith_quantization.forms.activation_split import split_activations
from edgesmith_quantization.forms.protected_form import divide_protected
from edgesmith_quantization.forms.split_form import TABLE_OPSET, write_branches, write_compact, write_merged
from edgesmith_quantization.forms.weight_form import BLOCK_OPSET, write_weight
from edgesmith_quantization.options.split import QuantizeSplitOptions
from edgesmith_quantization.step_errors import first_reasons, no_form

_LARGEST_SMALL_HEAD_BYTES = 4096
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class _Layer:
    """What was done to one weight."""

    name: str
    weights: int
    split_db: float
    plain_db: float
    edges: Float | None

    def __str__(self) -> str:
        edges = ""
        if self.edges is not None and len(self.edges) == 1:
            edges = f", clusters end at {', '.join(f'{edge:.3g}' for edge in self.edges[0])}"
        return f"{self.name} {self.split_db:.1f} dB (one part {self.plain_db:.1f}{edges})"


class QuantizeSplit(Method[QuantizeSplitOptions]):
    """Writes each weight as the sum of parts that are rounded to few bits each, with scales of their own.

    Parts hold clusters of values, of magnitudes, or the digits of one code. No data is needed, activations stay in
    float, and weights are taken one by one. Layers that gain little are left alone, with their gain in the notes.
    """

    def check(self, model: Model, context: Context[QuantizeSplitOptions]) -> Verdict:
        """Return whether there is something to split, and a form for it in the dialect of the target."""
        options = context.options
        problem = _form_problem(options, context.dialect) or unmatched_names(model.graph, options)
        if problem:
            return Verdict.refuse(problem)
        notes = Notes()
        try:
            sites = _sites(marked(model, options).graph, context, notes)
        except RecipeError as error:
            return Verdict.refuse(str(error))
        if not sites and not options.split_activations:
            reasons = first_reasons(notes, "the graph has no constant weight")
            return Verdict.skip(f"no weight can be split ({reasons})")
        return Verdict.ok(nodes=tuple(node_name(node) for site in sites for node in site.readers))

    def apply(self, model: Model, context: Context[QuantizeSplitOptions]) -> Model:
        """Return the model with split weights; the same graph, opset and all, where no layer gains enough.

        Raises:
            ModelError: The graph cannot be raised to the opset that the format needs.
            RecipeError: The protection is missing, or was made for another model.
            StepError: The target has no such format.
        """
        options, notes = context.options, context.notes
        problem = _form_problem(options, context.dialect)
        if problem:
            raise no_form("quantize-split", problem)
        result = model.clone()
        raise_opset(result.ir, _needed_opset(options, context.dialect))
        protected = find_protected(result, options)
        protected.mark(result.graph)
        sites = _sites(result.graph, context, notes)
        division = divide_protected(result, protected, [node_name(node) for site in sites for node in site.nodes])
        editor = GraphEditor(result.graph)
        before = weight_bytes(result.ir)
        layers: list[_Layer] = []
        freed = 0
        written: list[str] = []
        for site in context.progress.track(sites, "splitting", len(sites)):
            tensor = constant_tensor(site.weight)
            size = tensor.nbytes if tensor is not None else 0
            layer = _rewrite(editor, site, _scheme(options, context.dialect, site), options, notes)
            if layer is not None:
                layers.append(layer)
                freed += size
                written += map(node_name, site.nodes)
        activations = split_activations(editor, notes) if options.split_activations else 0
        if options.split_activations:
            notes.remark(f"Split {activations} activation functions along the last axis.")
        result = division.finish(written, notes)
        common_passes.RemoveUnusedNodesPass()(result.ir)
        _report(layers, weight_bytes(result.ir) - before + freed, options, notes)
        # Without a split the raised opset would be the only change.
        return result if layers or activations else model.clone()


def _rewrite(
    editor: GraphEditor, site: WeightSite, scheme: SplitScheme, options: QuantizeSplitOptions, notes: Notes
) -> _Layer | None:
    """Write `site` in its split form, or leave it alone with a reason."""
    rows: Weights = site.rows().copy()  # row by row in memory
    if not np.isfinite(rows).all():
        leave_alone(site, "its weight holds NaN or infinity", notes.skip)
        return None
    plain = round_unsplit(rows, scheme)
    plain_db = signal_to_noise_db(rows, dequantize_blocks(plain))
    if _has_few_values(rows, scheme.parts):
        if options.form == "compact":  # its dialects need not have codes of so few bits
            write_compact(editor, site, SplitWeight((plain,), None), whole=options.scales == "weight")
        else:
            write_weight(editor, site, plain)
        notes.remark(f"{site.name} has fewer than {scheme.parts} distinct values and is stored as one part.")
        return _Layer(site.name, rows.size, plain_db, plain_db, None)
    split = split_weight(rows, scheme)
    split_db = signal_to_noise_db(rows, split.dequantized())
    if split_db - plain_db < options.least_gain_db:
        gain = f"{split_db:.1f} dB against {plain_db:.1f} dB in one part"
        leave_alone(site, f"splitting gains too little ({gain}); quantize-weights stores it smaller", notes.skip)
        return None
    _write(editor, site, split, options)
    return _Layer(site.name, rows.size, split_db, plain_db, split.edges)


def _write(editor: GraphEditor, site: WeightSite, split: SplitWeight, options: QuantizeSplitOptions) -> None:
    if options.form == "branches":
        write_branches(editor, site, split, split_bias=options.bias == "split")
    elif options.form == "merged":
        write_merged(editor, site, split)
    else:
        write_compact(editor, site, split, whole=options.scales == "weight")


def find_split_sites(graph: ir.Graph, options: QuantizeSplitOptions, notes: Notes) -> tuple[WeightSite, ...]:
    """Return the weights that can be split, in graph order; nodes left alone get their reason in `notes`."""
    sites = []
    for site in find_weight_sites(graph, options.obstacle, notes.skip, operators=options.operators):
        if _is_small_head(site):
            leave_alone(site, "a head below 4 KiB stays in float", notes.skip)
        else:
            sites.append(site)
    return tuple(sites)


def _sites(graph: ir.Graph, context: Context[QuantizeSplitOptions], notes: Notes) -> list[WeightSite]:
    """Return the weights that can be split in the blocks of the target."""
    options, found = context.options, []
    for site in find_split_sites(graph, options, notes):
        obstacle = size_obstacle(site, options.block_size, _format(options, context.dialect), context.dialect.name)
        if obstacle:
            leave_alone(site, obstacle, notes.skip)
        else:
            found.append(site)
    return found


def _is_small_head(site: WeightSite) -> bool:
    if 4 * int(np.prod(site.shape)) >= _LARGEST_SMALL_HEAD_BYTES:
        return False
    return not any(node.op_type in _PRODUCTS for node in _downstream(site.readers))


def _downstream(nodes: Sequence[ir.Node]) -> Iterator[ir.Node]:
    """Yield the nodes that depend on the given ones."""
    seen = set(nodes)
    pending = list(nodes)
    while pending:
        for output in pending.pop().outputs:
            for use in output.uses():
                if use.node not in seen:
                    seen.add(use.node)
                    pending.append(use.node)
                    yield use.node


def _has_few_values(rows: Weights, count: int) -> bool:
    # Nearly every weight is settled by its first values.
    return len(np.unique(rows.ravel()[:_SAMPLE])) < count and len(np.unique(rows)) < count


def _scheme(options: QuantizeSplitOptions, dialect: Dialect, site: WeightSite) -> SplitScheme:
    weight_format = _format(options, dialect)
    # A table holds points anywhere; only codes that the target dequantizes are bound to its grids.
    symmetric = options.form != "compact" and weight_format is not None and weight_format.symmetric
    by = options.split_by
    convolution = any(node.op_type == "Conv" for node in site.readers)
    per_row = options.clusters == "channel" or (options.clusters == "auto" and convolution)
    return SplitScheme(
        bits=options.bits,
        parts=options.parts,
        by=("magnitude" if symmetric else "value") if by == "auto" else by,
        symmetric=symmetric,
        clusters_per_row=per_row,
        block_size=fitting_size(site, options.block_size, weight_format),
        whole=options.scales == "weight",
        clip=options.clip,
        assignment=options.assignment,
    )


def _format(options: QuantizeSplitOptions, dialect: Dialect) -> WeightFormat | None:
    """Return the format for the parts: with zero points where the dialect takes them."""
    affine = dialect.weight_format(f"uint{options.bits}")
    if affine is not None and not affine.symmetric:
        return affine
    return dialect.weight_format(f"int{options.bits}")


def _form_problem(options: QuantizeSplitOptions, dialect: Dialect) -> str:
    """Return why the dialect has no form for these options and what would work, or an empty string."""
    name = f"int{options.bits}"
    if options.form == "compact":
        if dialect.weight_format("uint4") is None:
            return f"{dialect.name} does not look up weights in tables of 4-bit codes; set form to branches"
        return ""
    weight_format = _format(options, dialect)
    if weight_format is None:
        others = [str(bits) for bits in (8, 4, 2) if dialect.weight_format(f"int{bits}") is not None]
        advice = f"; set bits to {' or '.join(others)}" if others else ""
        return f"{dialect.refusals.get(name, f'{dialect.name} stores no weights in {options.bits} bits')}{advice}"
    if options.block_size is not None and options.block_size not in weight_format.block_sizes:
        sizes = ", ".join(map(str, weight_format.block_sizes)) or "none"
        return f"{dialect.name} takes no blocks of {options.block_size} in {name} (it takes {sizes})"
    if _needed_opset(options, dialect) > dialect.opset:
        return f"{name} needs opset {_needed_opset(options, dialect)}; {dialect.name} reads up to {dialect.opset}"
    return ""


def _needed_opset(options: QuantizeSplitOptions, dialect: Dialect) -> int:
    if options.form == "compact":
        return TABLE_OPSET
    weight_format = _format(options, dialect)
    own = weight_format.opset if weight_format is not None else 0
    return max(own, BLOCK_OPSET) if options.block_size is not None else own


def _report(layers: Sequence[_Layer], stored_bytes: int, options: QuantizeSplitOptions, notes: Notes) -> None:
    if not layers:
        notes.remark(f"No layer gains {options.least_gain_db:g} dB by splitting, so all weights stay in float.")
        return
    weights = sum(layer.weights for layer in layers)
    products = f"{options.parts} products instead of one" if options.form == "branches" else "one product each"
    notes.remark(
        f"Split {len(layers)} weights into {options.parts} parts of {options.bits} bits ({options.form}, {products}): "
        f"{8 * stored_bytes / weights:.2f} bits stored per weight, {median(layer.split_db for layer in layers):.1f} dB "
        f"in the median against {median(layer.plain_db for layer in layers):.1f} dB in one part."
    )
    notes.remark("Weights by layer: " + "; ".join(map(str, layers)) + ".")
