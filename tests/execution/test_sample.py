"""sample_inputs makes inputs that graphs accept."""

import numpy as np
import onnx_ir as ir

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs

EMBEDDING = """<ir_version: 10, opset_import: ["" : 20]>
g (int64[batch, length] ids, int64[batch, length] mask, float[batch, length, 2] extra) => (float[batch, length, 2] y)
<float[3, 2] table = {1, 2, 3, 4, 5, 6}, float[30, 2] wide = {WIDE}> {
  copied = Identity(ids)
  narrow = Gather(table, copied)
  other = Gather(wide, ids)
  kept = Cast<to = 1>(mask)
  axis = Constant<value = int64[1] {2}>()
  column = Unsqueeze(kept, axis)
  both = Add(narrow, other)
  masked = Mul(both, column)
  y = Add(masked, extra)
}""".replace("WIDE", ", ".join(["0.5"] * 60))


def test_indices_stay_in_the_table_and_named_dimensions_agree():
    model = ir.from_onnx_text(EMBEDDING)
    inputs = sample_inputs(model, dimensions={"length": 50})
    assert inputs["ids"].shape == inputs["mask"].shape == (2, 50)
    assert set(np.unique(inputs["ids"])) == {0, 1, 2}
    assert (inputs["mask"] == 1).all()
    assert np.isfinite(ReferenceSession(model).run(inputs)["y"]).all()


def test_equal_seeds_give_equal_arrays():
    model = ir.from_onnx_text(EMBEDDING)
    first, again, other = (sample_inputs(model, seed=seed) for seed in (4, 4, 5))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["ids"], other["ids"])


def test_a_compared_scalar_an_image_and_a_flag():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
    g (int64 rate, float[?, 3, ?, ?] image, bool flag, float16[4] short) => (bool same, float[a, b, c, d] y)
    <int64 known = {16000}> {
      same = Equal(known, rate)
      y = Relu(image)
    }""")
    inputs = sample_inputs(model, dimensions={"image:3": 32})
    assert inputs["rate"].shape == () and inputs["rate"] == 16000
    assert inputs["image"].shape == (2, 3, 224, 32)
    assert inputs["flag"].dtype == np.bool_ and inputs["flag"]
    assert inputs["short"].dtype == np.float16
    assert ReferenceSession(model).run(inputs)["same"]
