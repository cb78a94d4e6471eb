"""Measures what rounded inputs cost each product of few bits, with the kernels that will run it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.edit import GraphEditor
from edgesmith.host.dialect import ACTIVATIONS_KEY, MINIMUM_SQNR_KEY
from edgesmith_onnxruntime.block_products import InputRange, lower_rounded_products, rounds_inputs


def measure_rounding(
    model: ir.Model,
    inputs_seen: Mapping[str, InputRange],
    samples: Sequence[Mapping[str, NDArray[Any]]],
    threads: int,
) -> tuple[dict[str, InputRange], dict[str, float]]:
    """Return inputs evened out so that products lose least, and the products that ask for more than they keep even so.

    Only where products ask for something (`MINIMUM_SQNR_KEY`) anything is measured, or changed. The second result
    holds ratios in dB by the name of the product's output.

    Args:
        model: A graph with products that may round their inputs; not changed.
        inputs_seen: What was seen of the inputs of these products, by value name.
        samples: Inputs of the graph.
        threads: Threads of the runtime.
    """
    readers: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        value = node.inputs[0] if rounds_inputs(node) else None
        if value is not None and _minimum_sqnr_db(node) is not None:
            readers.setdefault(str(value.name), []).append(node)
    if not readers:
        return dict(inputs_seen), {}
    by_loads = {name: replace(seen, evened_by="loads") for name, seen in inputs_seen.items()}
    tries = [(seen, _ratios(model, seen, samples, threads)) for seen in (inputs_seen, by_loads)]
    chosen, noisy = dict(inputs_seen), dict[str, float]()
    for name, nodes in readers.items():
        outputs = {str(node.outputs[0].name): node for node in nodes}
        seen, ratios = max(tries, key=lambda each: min(each[1][output] for output in outputs))
        chosen[name] = seen[name]
        noisy |= {each: ratios[each] for each, node in outputs.items() if ratios[each] < (_minimum_sqnr_db(node) or 0)}
    return chosen, noisy


def _ratios(
    model: ir.Model,
    inputs_seen: Mapping[str, InputRange],
    samples: Sequence[Mapping[str, NDArray[Any]]],
    threads: int,
) -> dict[str, float]:
    """Return what the products that ask for something keep, in dB by the name of their output.

    Each is measured by itself: it stands in the graph once as it is, which all later nodes go on from, and once with
    its input rounded row by row. Energies of rows are summed in the graph, so that memory holds one run. Where few rows
    are multiplied, blocks of a row get scales of their own when it counts, and less is lost than measured here.
    """
    measured = model.clone()
    editor = GraphEditor(measured.graph)
    taps: dict[str, tuple[str, str]] = {}
    for node in [node for node in measured.graph if rounds_inputs(node)]:
        del node.metadata_props[ACTIVATIONS_KEY]
        if _minimum_sqnr_db(node) is not None:
            taps[str(node.outputs[0].name)] = _add_energies(editor, node)
    lower_rounded_products(measured.graph, inputs_seen)
    names = [name for pair in taps.values() for name in pair]
    session = ReferenceSession(measured, taps=names, only_taps=True, threads=threads)
    rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for sample in samples:
        found = session.run({name: sample[name] for name in session.input_names})
        for name in names:
            rows[name].append(found[name].ravel())
    return {name: row_sqnr_db(*(np.concatenate(rows[each]) for each in pair)) for name, pair in taps.items()}


def row_sqnr_db(signal: NDArray[np.float32], noise: NDArray[np.float32]) -> float:
    """Return the signal-to-noise ratio (dB) of rows that count alike.

    Infinite where nothing is lost, and minus infinite where an energy is not finite.

    In language models a few tokens have outputs a thousand times those of others. Over all rows together they would
    be the signal, and what the others lose would not show. A row loses itself at most.

    Args:
        signal: Energy of each row.
        noise: Energy of what each row lost.
    """
    tiny = np.finfo(np.float32).tiny
    lost = np.minimum(noise / np.maximum(signal, tiny), 1.0).mean(dtype=np.float64)
    if not np.isfinite(lost):
        return float("-inf")
    return float("inf") if lost == 0 else -10 * float(np.log10(lost))


def _add_energies(editor: GraphEditor, node: ir.Node) -> tuple[str, str]:
    """Put a rounded twin beside a product; return the names of the energies of its rows and of what these lose."""
    turned = {"transB": 1} if node.attributes.get_int("transB", 0) else {}
    exact, stem = node.outputs[0], node.name or node.op_type
    twin = editor.insert_before(node, node.op_type, node.inputs, turned, name=f"{stem}_rounded")
    twin.metadata_props[ACTIVATIONS_KEY] = "int8"
    noise = editor.insert_after(exact, "Sub", (exact, twin.outputs[0]), name=f"{stem}_noise").outputs[0]
    last, names = editor.add_initializer(f"{stem}_last", np.array([-1], np.int64)), []
    for value, part in ((exact, "signal"), (noise, "noise")):
        energy = editor.insert_after(value, "ReduceSumSquare", (value, last), name=f"{stem}_{part}_energy")
        names.append(str(energy.outputs[0].name))
    return names[0], names[1]


def _minimum_sqnr_db(node: ir.Node) -> float | None:
    """Return what a product asks for; None where it asks for nothing, or for no number."""
    try:
        return float(node.metadata_props.get(MINIMUM_SQNR_KEY, ""))
    except ValueError:
        return None
