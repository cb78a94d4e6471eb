"""Split quantization beside what it has to be compared with: plain rounding at the same, at more and at all its bits.

For a small BERT, a small CNN and a small language model: the float model; weights in b bits with one scale, in one part
and split as published; in b bits per channel, in one part and split; the split of this library; and plain rounding at
the bits that a split stores in truth, b times the number of parts, and at b + 2. Every row has its stored bits and its
latency, because a split of three dense parts stores 3 b bits a weight and multiplies three times.

The same layers are rounded in all rows: products and convolutions, no embeddings, no head below 4 KiB. Nothing is
calibrated. Rows marked "simulated" hold rounded floats, since ONNX has no such form; their latency says nothing.

    python -m benchmarks.split_table --case minilm_r8 --bits 2
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from benchmarks import models
from benchmarks.measuring import THREADS, call_child, quartiles, spread
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.opset import raise_opset
from edgesmith.graph.weight_sites import WeightSite
from edgesmith.host.context import Context, Notes
from edgesmith.measure.machine import describe_machine
from edgesmith.model import Model, Provenance
from edgesmith.serialization import weight_bytes
from edgesmith.task import Task
from edgesmith_onnxruntime.cpu import DIALECT, OnnxCpu
from edgesmith_quantization.arithmetic.blocks import BlockCodes
from edgesmith_quantization.arithmetic.splitting import SplitScheme, find_owners, round_unsplit, split_by_owner
from edgesmith_quantization.forms.weight_form import write_weight
from edgesmith_quantization.options.split import QuantizeSplitOptions
from edgesmith_quantization.quantize_split import QuantizeSplit, find_split_sites

OUT = Path("build/bench/split")
CASES = ("minilm_r8", "mobilenet", "smollm2")
METRICS = {"accuracy": "accuracy_percent", "perplexity": "perplexity"}
GROUP = 128
"""Weights that share a scale in the quantizer behind the published numbers (optimum-quanto)."""

Rewrite = Callable[[Model], Model]


@dataclass(frozen=True)
class Row:
    """One way to store the weights."""

    name: str
    rewrite: Rewrite
    note: str = ""
    nominal_bits: int | None = None
    """Bits of a code where the file's are more."""
    lowered: bool = True
    """Whether the target may join what a split has taken apart."""


def rows_for(bits: int) -> list[Row]:
    """Return the rows of the table for codes of `bits` bits."""
    whole, channel = SplitScheme(bits, whole=True), SplitScheme(bits)
    digits = 3 if bits == 2 else 2
    published = {"scales": "weight", "clip": "none", "assignment": "clusters"}
    return [
        Row("float", lambda model: model),
        Row(f"plain {bits}, one scale", plain(whole)),
        Row(f"split {bits}, one scale (as published)", split(bits, **published)),
        Row(f"plain {bits} per channel", plain(channel)),
        Row(f"split {bits} per channel, clusters", split(bits, **{**published, "scales": "channel"})),
        Row(f"plain {bits} per channel, MSE", plain(SplitScheme(bits, clip="mse"))),
        Row(f"split {bits} (default)", split(bits)),
        Row(f"split {bits} (default), three products", split(bits), lowered=False),
        Row(f"split {bits}, compact", split(bits, form="compact")),
        Row(f"split {bits}, {digits} digits", split(bits, split_by="digits", parts=digits)),
        more_bits(bits + 2),
        more_bits(3 * bits),
        Row(f"plain {bits} in groups, float shift (published baseline)", simulated(bits, parts=1), "simulated", bits),
        Row(f"split {bits} in groups, float shift (published)", simulated(bits, parts=3), "simulated", 3 * bits),
    ]


def more_bits(bits: int) -> Row:
    """Return the best plain rounding per channel; odd numbers of bits are stored in 8, or as floats."""
    name = f"plain {bits} per channel, MSE"
    if bits > 8:
        return Row(f"plain {bits} per channel", simulated(bits, parts=1, group=None), "simulated", bits)
    return Row(name, plain(SplitScheme(bits, clip="mse")), "" if bits in (2, 4, 8) else "in 8 bits", bits)


def split(bits: int, **options: Any) -> Rewrite:
    """Return the method with these options, on all layers whatever they gain."""

    def rewrite(model: Model) -> Model:
        values = QuantizeSplitOptions.model_validate({"bits": bits, "least_gain_db": 0.0, **options})
        return QuantizeSplit().apply(model, _context(values))

    return rewrite


def plain(scheme: SplitScheme) -> Rewrite:
    """Return rounding to one part by the quantizer that splits use."""

    def rewrite(model: Model) -> Model:
        def write(editor: GraphEditor, site: WeightSite) -> None:
            rounded = round_unsplit(np.ascontiguousarray(site.rows(), np.float32), scheme)
            stored = next(size for size in (2, 4, 8) if size >= scheme.bits)
            write_weight(
                editor,
                site,
                BlockCodes(rounded.codes, rounded.scale, rounded.zero_point, stored, rounded.block_size),
            )

        return _each_site(model, write)

    return rewrite


def simulated(bits: int, parts: int, group: int | None = GROUP) -> Rewrite:
    """Return rounding of float weights on affine grids whose shift is a float, so that 0 need not be a point.

    This is the quantizer of the published numbers: one grid per row, or per `group` inputs of rows that are longer.
    """

    def rewrite(model: Model) -> Model:
        def write(editor: GraphEditor, site: WeightSite) -> None:
            rows = np.ascontiguousarray(site.rows(), np.float32)
            pieces: Sequence[np.ndarray] = (rows,)
            if parts > 1:
                convolution = site.readers[0].op_type == "Conv"
                owners, _ = find_owners(rows, parts, magnitude=False, per_row=convolution)
                pieces = split_by_owner(rows, owners, parts)
            total = sum(round_with_shift(piece, bits, group) for piece in pieces)
            array = total.T if site.is_matrix and site.output_axis > site.input_axis else total
            site.weight.const_value = ir.tensor(np.ascontiguousarray(array.reshape(site.shape), np.float32))

        return _each_site(model, write)

    return rewrite


def round_with_shift(rows: np.ndarray, bits: int, group: int | None) -> np.ndarray:
    """Return `rows` [rows, inputs] rounded to `2**bits` points from the smallest to the largest value of each group."""
    count, inputs = rows.shape
    size = group if group is not None and inputs > group and inputs % group == 0 else inputs
    cut = rows.reshape(count, -1, size).astype(np.float64)
    low, high = cut.min(axis=2, keepdims=True), cut.max(axis=2, keepdims=True)
    step = np.where(high > low, (high - low) / ((1 << bits) - 1), 1.0)
    return (np.rint((cut - low) / step) * step + low).reshape(rows.shape)


def _each_site(model: Model, write: Callable[[GraphEditor, WeightSite], None]) -> Model:
    result = model.clone()
    raise_opset(result.ir, 25)
    editor = GraphEditor(result.graph)
    for site in find_split_sites(result.graph, QuantizeSplitOptions(), Notes()):
        write(editor, site)
    return result


def _context(options: Any) -> Context[Any]:
    return Context(options, DIALECT, Path(tempfile.gettempdir()), threads=THREADS)


def measure(case: models.Case, bits: int, effort: argparse.Namespace) -> dict[str, Any]:
    """Return the results of every row of a case by name."""
    folder = OUT / f"{case.name}-{bits}"
    folder.mkdir(parents=True, exist_ok=True)
    source = Model(ir.load(case.model), Task(), Provenance("benchmark", str(case.model), ""))
    sites = find_split_sites(source.graph, QuantizeSplitOptions(), Notes())
    weights = sum(int(np.prod(site.shape)) for site in sites)
    rest = weight_bytes(source.ir) - sum(4 * int(np.prod(site.shape)) for site in sites)
    found: dict[str, Any] = {}
    for index, row in enumerate(rows_for(bits)):
        model = row.rewrite(source)
        stored_bits = 8 * (weight_bytes(model.ir) - rest) / weights
        path = folder / f"{index}.onnx"
        shipped = OnnxCpu().lower(model, _context(None)) if row.lowered else model
        ir.save(shipped.ir, path)
        _, quality = call_child(
            "benchmarks.measuring",
            "quality",
            model=str(path),
            data=str(case.evaluation),
            metric=case.metric,
            samples=effort.samples,
            reference=str(folder / "reference.npy"),
            write_reference=index == 0,
        )
        nominal = row.nominal_bits if row.note else None
        found[row.name] = {"file": str(path), "note": row.note, "stored_bits": nominal or stored_bits, **quality}
        found[row.name]["size_bytes"] = path.stat().st_size
        Console().print(f"{case.name} {row.name}: {found[row.name]}")
    _time(case, found, effort)
    return found


def _time(case: models.Case, found: dict[str, Any], effort: argparse.Namespace) -> None:
    """Add latencies and the ratio float/this, from processes with one pair of models each, in shuffled rounds."""
    names = [name for name, row in found.items() if name != "float" and row["note"] != "simulated"]
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    generator = random.Random(0)
    for seed in range(effort.rounds):
        for name in generator.sample(names, len(names)):
            files = {"float": found["float"]["file"], "this": found[name]["file"]}
            _, answer = call_child(
                "benchmarks.measuring",
                "latency",
                models=files,
                data=str(case.evaluation),
                seed=seed,
                turns=effort.turns,
            )
            pairs[name].extend(zip(answer["float"], answer["this"], strict=True))
    for name, values in pairs.items():
        found[name]["latency_ms"] = quartiles([this for _, this in values])
        found[name]["speedup"] = quartiles([full / this for full, this in values])
    found["float"]["latency_ms"] = quartiles([full for values in pairs.values() for full, _ in values])


def show(case: models.Case, bits: int, found: Mapping[str, Any]) -> None:
    """Print the table of a case, and what splitting gained in it beside what was published."""
    key = METRICS[case.metric]
    table = Table("weights", "stored bits", key.replace("_", " "), "SQNR dB", "MB", "latency ms", "speed-up", "")
    table.title = f"{case.name}, {bits} bits, {found['float']['samples']} samples, {THREADS} threads"
    for name, row in found.items():
        sqnr = f"{row['sqnr_db']:.1f}" if row.get("sqnr_db") is not None else ""
        times = [spread(row[each]) if each in row else "" for each in ("latency_ms", "speedup")]
        size = "" if row["note"] == "simulated" else f"{row['size_bytes'] / 1e6:.1f}"
        table.add_row(name, f"{row['stored_bits']:.2f}", f"{row[key]:.2f}", sqnr, size, *times, row["note"])
    console = Console(width=180)
    console.print(table)
    if case.metric == "accuracy" and bits == 2:
        pair = [row for name, row in found.items() if "published" in name and row["note"] == "simulated"]
        gain = pair[1][key] - pair[0][key]
        console.print(
            f"Split against its baseline in the published quantizer: {gain:+.1f} points (published for two BERT-Tiny "
            f"models: +3.3 and +2.1, from baselines that had lost 3.7 and 2.2 points; this one has lost "
            f"{found['float'][key] - pair[0][key]:.1f})."
        )


def main() -> None:
    """Measure the cases that can be prepared, print their tables, and write `build/bench/split/*.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--bits", type=int, choices=(2, 4), action="append")
    parser.add_argument("--rounds", type=int, default=3, help="Times that each latency process runs.")
    parser.add_argument("--turns", type=int, default=15, help="Latency samples per model and process.")
    parser.add_argument("--samples", type=int, help="Evaluation samples; default: all.")
    chosen = parser.parse_args()
    for name in chosen.case or CASES:
        try:
            case = getattr(models, name)()
        except models.MissingDataError as error:
            Console().print(f"{name} is left out. {error}")
            continue
        for bits in chosen.bits or (2, 4):
            found = measure(case, bits, chosen)
            result = {"machine": describe_machine(), "threads": THREADS, "rows": found}
            (OUT / f"{name}-{bits}.json").write_text(json.dumps(result, indent=2))
            show(case, bits, found)


if __name__ == "__main__":
    main()
