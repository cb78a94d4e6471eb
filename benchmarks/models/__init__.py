"""Real models and data for benchmarks, read out of installed packages and prepared once under `build/bench/cases`."""

from benchmarks.models.case import Case, MissingDataError, package_file
from benchmarks.models.fashion_mnist import fashion_small, fashion_vit_s14
from benchmarks.models.minilm import minilm, minilm_r8
from benchmarks.models.mobilenet import mobilenet, mobilenet_200
from benchmarks.models.smollm2 import load_smollm2, smollm2
from benchmarks.models.vit_s14 import vit_s14

__all__ = [
    "Case",
    "MissingDataError",
    "fashion_small",
    "fashion_vit_s14",
    "load_smollm2",
    "minilm",
    "minilm_r8",
    "mobilenet",
    "mobilenet_200",
    "package_file",
    "smollm2",
    "vit_s14",
]
