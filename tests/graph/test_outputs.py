import onnx_ir as ir
import pytest

from edgesmith.graph.outputs import float_outputs


def outputs(**types: ir.DataType | None) -> ir.Graph:
    values = [
        ir.Value(name=name, type=None if dtype is None else ir.TensorType(dtype)) for name, dtype in types.items()
    ]
    return ir.Graph(values, values, nodes=[], opset_imports={"": 21})


def test_floats_are_found_in_order():
    graph = outputs(
        logits=ir.DataType.FLOAT,
        classes=ir.DataType.INT64,
        half=ir.DataType.FLOAT16,
        brain=ir.DataType.BFLOAT16,
        shown=ir.DataType.BOOL,
    )
    assert float_outputs(graph) == ("logits", "half", "brain")


@pytest.mark.parametrize("dtype", [ir.DataType.INT8, ir.DataType.BOOL, ir.DataType.STRING, None])
def test_what_is_no_float_or_not_known_is_left_out(dtype: ir.DataType | None):
    assert float_outputs(outputs(y=dtype)) == ()
