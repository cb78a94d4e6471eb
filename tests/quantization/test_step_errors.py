"""What methods say that find nothing to do, or no form in the dialect of the target."""

from dataclasses import replace

import numpy as np
import pytest

from edgesmith.errors import StepError
from edgesmith.host.context import Notes
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.options.split import QuantizeSplitOptions
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_fp8 import QuantizeFp8
from edgesmith_quantization.quantize_split import QuantizeSplit
from edgesmith_quantization.quantize_weights import QuantizeWeights
from edgesmith_quantization.step_errors import first_reasons
from small_graphs import context, graph, node

METHODS = {
    "quantize-weights": (QuantizeWeights, QuantizeWeightsOptions),
    "quantize-split": (QuantizeSplit, QuantizeSplitOptions),
    "quantize-fp8": (QuantizeFp8, QuantizeFp8Options),
}


def chain(count):
    nodes = [node("MatMul", [f"h{each}", "w"], f"h{each + 1}") for each in range(count)]
    return graph(nodes, {"w": np.eye(32, dtype=np.float32)}, {"h0": ["n", 32]}, (f"h{count}",))


def test_the_first_three_reasons_are_named():
    notes = Notes()
    assert first_reasons(notes, "there is nothing") == "there is nothing"
    for name in "abcd":
        notes.skip(name, "too small")
    assert first_reasons(notes, "there is nothing") == "a: too small; b: too small; c: too small"


@pytest.mark.parametrize("name", METHODS)
def test_a_check_that_skips_names_the_first_three(name):
    method, options = METHODS[name]
    verdict = method().check(chain(4), context(options(skip=("node_h*",))))
    assert verdict.status == "skip"
    assert verdict.reason.count("named in the option skip") == 3
    none = graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 4]})
    assert "the graph has no" in method().check(none, context(options())).reason


@pytest.mark.parametrize("name", ["quantize-weights", "quantize-fp8"])
def test_nothing_to_do_names_the_method_and_the_reasons(name):
    method, options = METHODS[name]
    with pytest.raises(StepError, match=f"{name} found nothing to quantize .*named in the option skip") as caught:
        method().apply(chain(4), context(options(skip=("node_h*",))))
    assert "widen the options" in caught.value.fix
    assert caught.value.what.count("named in the option skip") == 3


@pytest.mark.parametrize("name", ["quantize-weights", "quantize-split"])
def test_no_form_names_the_method_and_the_problem(name):
    method, options = METHODS[name]
    with pytest.raises(StepError, match=f"{name} cannot write this form: onnx-cpu"):
        method().apply(chain(1), context(options(bits=2), dialect=replace(DIALECT, weight_only=())))
