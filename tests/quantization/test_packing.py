"""Codes in bytes: as onnx_ir, ml_dtypes and the onnx package store them."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_quantization.arithmetic import packing
from edgesmith_quantization.arithmetic.packing import pack_codes

DTYPES = {
    (2, True): ir.DataType.INT2,
    (2, False): ir.DataType.UINT2,
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}


def random_codes(shape, bits, signed, seed=0):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int8 if signed else np.uint8)


@pytest.mark.parametrize(("bits", "signed"), DTYPES)
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
    seed=st.integers(0, 99),
    step=st.sampled_from([8, 1 << 18]),
)
@settings(max_examples=30, deadline=None)
def test_bytes_are_those_of_onnx_ir(bits, signed, shape, seed, step):
    codes = random_codes(shape, bits, signed, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CODES_PER_STEP", step)
        packed = pack_codes(codes, bits)
    dtype = DTYPES[bits, signed]
    assert packed.tobytes() == ir.Tensor(codes.astype(dtype.numpy())).tobytes()


@pytest.mark.parametrize(
    ("kind", "dtype"), [(onnx.TensorProto.INT4, ml_dtypes.int4), (onnx.TensorProto.UINT4, ml_dtypes.uint4)]
)
def test_the_onnx_package_reads_the_codes(kind, dtype):
    codes = random_codes((3, 7), 4, kind == onnx.TensorProto.INT4)
    proto = onnx.helper.make_tensor("codes", kind, codes.shape, pack_codes(codes, 4).tobytes(), raw=True)
    found = onnx.numpy_helper.to_array(proto)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(np.int8), codes.astype(np.int8))


def test_a_transposed_matrix_is_packed_in_the_order_of_its_indices():
    codes = random_codes((6, 10), 4, signed=True)
    np.testing.assert_array_equal(pack_codes(codes.T, 4), pack_codes(np.ascontiguousarray(codes.T), 4))
