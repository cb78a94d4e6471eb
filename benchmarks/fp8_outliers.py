"""Eight-bit integers and floats on synthetic activations: signal to noise in dB, with and without outliers.

INT8 and E4M3 put the largest magnitude on the largest code. The last column is the rule of ONNX Runtime's quantizer
for FP8 (calibration method Distribution): it scales by the standard deviation of the tensor over that of all E4M3
values, 100.06, so that it saturates at 4.48 standard deviations. Fast and exact: no model, no data.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edgesmith_quantization.arithmetic import rounding
from edgesmith_quantization.arithmetic.float8 import E4M3, E5M2, Float8Format, dequantize, quantize
from edgesmith_quantization.arithmetic.rounding import symmetric_scale

OUT = Path("build/bench/fp8_outliers.json")
SHAPE, SEEDS = (512, 768), 5
OUTLIER_SHARE, OUTLIER_FACTOR = 0.002, 40
E4M3_DEVIATION = 100.06

Values = NDArray[np.float32]


def gaussian(generator: np.random.Generator) -> Values:
    """Clean data."""
    return generator.normal(0, 1, SHAPE).astype(np.float32)


def heavy_tails(generator: np.random.Generator) -> Values:
    """Student's t with 3 degrees of freedom."""
    return generator.standard_t(3, SHAPE).astype(np.float32)


def outliers(generator: np.random.Generator) -> Values:
    """Clean data of which a few values are many times larger, as in some channels of transformers."""
    values = gaussian(generator)
    values[generator.random(SHAPE) < OUTLIER_SHARE] *= OUTLIER_FACTOR
    return values


def int8(values: Values) -> Values:
    """Symmetric INT8, the largest magnitude on 127."""
    scale, zero_point = symmetric_scale(values, 127), np.zeros((), np.int8)
    return rounding.dequantize(rounding.quantize(values, scale, zero_point), scale, zero_point)


def float8(form: Float8Format) -> Callable[[Values], Values]:
    """Eight-bit floats, the largest magnitude on the largest value."""

    def restore(values: Values) -> Values:
        scale = symmetric_scale(values, form.largest)
        return dequantize(quantize(values, scale, form), scale)

    return restore


def distribution(values: Values) -> Values:
    """E4M3 by the standard deviation."""
    scale = np.float32(values.std() / E4M3_DEVIATION)
    return dequantize(quantize(values, scale, E4M3), scale)


DATA = {
    "Gaussian": gaussian,
    "Student-t(3)": heavy_tails,
    f"Gaussian, {OUTLIER_SHARE:.1%} outliers x{OUTLIER_FACTOR}": outliers,
}
RULES = {
    "INT8 absmax": int8,
    "E4M3 absmax": float8(E4M3),
    "E5M2 absmax": float8(E5M2),
    "E4M3 Distribution": distribution,
}


def sqnr_db(values: Values, restored: Values) -> float:
    """Return the ratio of signal to error in dB."""
    noise = np.square(values.astype(np.float64) - restored).sum()
    return float(10 * np.log10(np.square(values.astype(np.float64)).sum() / noise))


def main() -> None:
    """Print and store the mean and the extremes over the seeds."""
    table = Table("data", *(f"{rule}, dB" for rule in RULES), title=f"SQNR, {SEEDS} seeds of {SHAPE[0]} x {SHAPE[1]}")
    results: dict[str, dict[str, list[float]]] = {}
    for name, draw in DATA.items():
        drawn = [draw(np.random.default_rng(seed)) for seed in range(SEEDS)]
        results[name] = {rule: [sqnr_db(values, apply(values)) for values in drawn] for rule, apply in RULES.items()}
        cells = (f"{np.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})" for found in results[name].values())
        table.add_row(name, *cells)
    Console(width=150).print(table)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
