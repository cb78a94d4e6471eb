"""How far outputs are from float on `android-qnn` with activations of 8 and of 16 bits, weights of 8 bits in both.

Networks and samples are those of `benchmarks.profiles`, unless told otherwise. ONNX Runtime computes the outputs on
this machine; nothing is timed, as only a phone could tell.

    python -m benchmarks.activation_width --network 'MiniLM*' --calibration 32 --evaluation 200
"""

import argparse
import fnmatch
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from benchmarks.models.case import Case, MissingDataError
from benchmarks.profiles import NETWORKS, TOKENS

OUT = Path("build/bench/activation_width.json")
WIDTHS: tuple[Literal[8, 16], ...] = (8, 16)


def arrays_of(path: Path, samples: int) -> dict[str, Any]:
    """Return the first samples of a file, passages without labels cut short."""
    with np.load(path) as archive:
        arrays = {name: archive[name][:samples] for name in archive.files}
    if arrays.pop("labels", None) is not None:
        return arrays
    return {name: array[:, :TOKENS] if array.ndim == 2 else array for name, array in arrays.items()}


def distances(case: Case, calibration: int, evaluation: int) -> dict[str, tuple[float, float]]:
    """Return for each width the signal-to-noise ratio of the first output, in decibels, and the share of same answers.

    An answer is the place of the largest number, for each sample, or for each token of a language model.
    """
    from edgesmith.execution.reference import ReferenceSession
    from edgesmith.host.context import Context
    from edgesmith.model import Model, Provenance
    from edgesmith.task import Task
    from edgesmith_calibration.sources import ArraySource
    from edgesmith_onnxruntime.qnn.target import AndroidQnn
    from edgesmith_quantization.options.int8 import QuantizeInt8Options
    from edgesmith_quantization.quantize_int8 import QuantizeInt8

    model = Model(ir.load(case.model), Task(), Provenance(case.name, "onnx", case.name))
    data, dialect = ArraySource(arrays_of(case.calibration, calibration)), AndroidQnn().dialect
    arrays, found = arrays_of(case.evaluation, evaluation), {}
    count = len(next(iter(arrays.values())))
    feeds = [{name: array[index : index + 1] for name, array in arrays.items()} for index in range(count)]
    name = str(model.graph.outputs[0].name)
    session = ReferenceSession(model.ir)
    expected = [session.run(feed)[name].astype(np.float64) for feed in feeds]
    for bits in WIDTHS:
        with tempfile.TemporaryDirectory() as folder:
            options = QuantizeInt8Options(activation_bits=bits)
            result = QuantizeInt8().apply(model, Context(options, dialect, Path(folder), data))
        session = ReferenceSession(result.ir)
        actual = [session.run(feed)[name].astype(np.float64) for feed in feeds]
        noise = sum(float(np.square(own - one).sum()) for own, one in zip(actual, expected, strict=True))
        signal = sum(float(np.square(one).sum()) for one in expected)
        same = [own.argmax(-1) == one.argmax(-1) for own, one in zip(actual, expected, strict=True)]
        found[str(bits)] = 10 * float(np.log10(signal / noise)), float(np.mean(same))
    return found


def main() -> None:
    """Measure the chosen networks, and write table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="*", help="Pattern of networks.")
    parser.add_argument("--calibration", type=int, help="Samples to calibrate with.")
    parser.add_argument("--evaluation", type=int, help="Samples to evaluate on.")
    chosen, console, rows = parser.parse_args(), Console(), {}
    table = Table(
        "network", *(f"{bits} bits, dB (same answers)" for bits in WIDTHS), "samples to calibrate, to evaluate"
    )
    for network, (prepare, calibration, evaluation) in NETWORKS.items():
        if not fnmatch.fnmatch(network, chosen.network):
            continue
        samples = chosen.calibration or calibration, chosen.evaluation or evaluation
        try:
            rows[network] = distances(prepare(), *samples)
        except MissingDataError as error:
            console.print(f"{network} is left out. {error}")
            continue
        values = [f"{decibels:.1f} ({same:.1%})" for decibels, same in rows[network].values()]
        table.add_row(network, *values, f"{samples[0]}, {samples[1]}")
    console.print(table)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
