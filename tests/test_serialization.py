"""Model files from strangers: each kind of damage is one clear error, and nothing outside the directory is read."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.digest import digest_graph
from edgesmith.errors import ModelError, UnsupportedOperatorError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.mapped import is_unchangeable
from edgesmith.model import Model
from edgesmith.serialization import external_files, read_onnx, to_bytes, weight_bytes, write_onnx


def linear(*, opset: int = 20) -> onnx.ModelProto:
    """x [N, 4] times w [4, 3]."""
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def written(directory: Path, change: Callable[[onnx.ModelProto], object] = lambda model: None) -> Path:
    model = linear()
    change(model)
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def external(directory: Path, location: str, *, offset: object = 0, length: object = 48) -> Path:
    """The linear model with its weight at `location`."""

    def change(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            weight.external_data.add(key=key, value=str(value))

    return written(directory, change)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    model = read_onnx(written(tmp_path))
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(ReferenceSession(model).run({"x": x})["y"], [[18, 22, 26]] * 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>not found</html>", "it is text, beginning with '<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (bytes(range(256)) * 8, "truncated, damaged, or another format"),
        (b"PK\x03\x04" + b"\0" * 64, "truncated, damaged, or another format"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not an ONNX model") as caught:
        read_onnx(path)
    assert said in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = linear().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError):
            read_onnx(path)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        read_onnx(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        read_onnx(tmp_path)


def test_unknown_operators_are_named_with_their_node(tmp_path: Path) -> None:
    def custom(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type, model.graph.node[0].domain = "Frobnicate", "com.acme"
        model.opset_import.append(helper.make_opsetid("com.acme", 1))

    with pytest.raises(UnsupportedOperatorError, match=r"`product`.*`com\.acme\.Frobnicate`"):
        read_onnx(written(tmp_path, custom))

    def misspelled(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "MatMull"

    with pytest.raises(UnsupportedOperatorError, match=r"`product`.*`MatMull`, which is unknown"):
        read_onnx(written(tmp_path, misspelled))

    def too_new(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "RMSNormalization"

    with pytest.raises(UnsupportedOperatorError, match="opset 20 does not have"):
        read_onnx(written(tmp_path, too_new))


@pytest.mark.parametrize("kind", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_norms_that_onnx_runtime_wrote_into_an_older_opset_are_read(kind: str, tmp_path: Path) -> None:
    def older(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = kind
        model.opset_import[0].version = 14

    model = read_onnx(written(tmp_path, older))
    assert model.graph.node(0).domain == "" and "com.microsoft" not in model.opset_imports


def test_an_operator_defined_by_the_file_itself_is_accepted(tmp_path: Path) -> None:
    def define(model: onnx.ModelProto) -> None:
        body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
        opsets = [helper.make_opsetid("", 20)]
        model.functions.append(helper.make_function("com.acme", "Product", ["a", "b"], ["c"], body, opsets))
        model.graph.node[0].op_type, model.graph.node[0].domain = "Product", "com.acme"
        model.opset_import.append(helper.make_opsetid("com.acme", 1))

    model = read_onnx(written(tmp_path, define))
    assert len(model.functions) == 1


@pytest.mark.parametrize("opset", [7, 8, 99])
def test_opsets_out_of_range_are_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ModelError, match=f"uses ONNX opset {opset}"):
        read_onnx(written(tmp_path, lambda model: model.opset_import[0].__setattr__("version", opset)))


def test_graphs_without_inputs_or_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no output"):
        read_onnx(written(tmp_path, lambda model: model.graph.ClearField("output")))

    def without_input(model: onnx.ModelProto) -> None:
        model.graph.ClearField("input")
        model.graph.node[0].input[0] = "w"

    with pytest.raises(ModelError, match="has no input"):
        read_onnx(written(tmp_path, without_input))


def test_a_dangling_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a valid ONNX graph"):
        read_onnx(written(tmp_path, lambda model: model.graph.node[0].input.__setitem__(0, "ghost")))


@pytest.mark.parametrize("dims", [[-4, 3], [4, -3], [2**40, 3], [2**31 - 1, 2**31 - 1], [0x7FFFFFFFFFFFFFFF]])
def test_negative_and_absurd_dimensions_are_refused(tmp_path: Path, dims: list[int]) -> None:
    with pytest.raises(ModelError, match=r"`w`.*shape"):
        read_onnx(written(tmp_path, lambda model: model.graph.initializer[0].dims.__setitem__(slice(None), dims)))

    def declare(model: onnx.ModelProto) -> None:
        shape = model.graph.input[0].type.tensor_type.shape
        shape.ClearField("dim")
        for size in dims:
            shape.dim.add(dim_value=size)

    with pytest.raises(ModelError, match=r"`x`.*shape"):
        read_onnx(written(tmp_path, declare))


@pytest.mark.parametrize("dims", [[4, 4], [4, 2], [12000, 12000]])
def test_sizes_are_checked_against_the_bytes_that_are_there(tmp_path: Path, dims: list[int]) -> None:
    with pytest.raises(ModelError, match=r"`w`.*holds 48 bytes where"):
        read_onnx(written(tmp_path, lambda model: model.graph.initializer[0].dims.__setitem__(slice(None), dims)))


def test_typed_fields_are_checked_too(tmp_path: Path) -> None:
    def typed(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [4, 3], list(range(12))))
        del model.graph.initializer[0].float_data[5:]

    with pytest.raises(ModelError, match="holds 5 values where 12 are needed"):
        read_onnx(written(tmp_path, typed))


def test_a_lying_constant_inside_a_branch_is_found(tmp_path: Path) -> None:
    lie = TensorProto(name="lie", data_type=TensorProto.FLOAT, dims=[10**6])
    lie.raw_data = b"\0" * 4
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], name="liar", value=lie)],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )

    def nest(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        model.graph.node.append(helper.make_node("If", ["c"], ["unused"], then_branch=branch, else_branch=branch))

    with pytest.raises(ModelError, match=r"`liar\.value`.*holds 4 bytes where 4000000"):
        read_onnx(written(tmp_path, nest))


def test_two_initializers_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="two initializers with the name `w`"):
        read_onnx(written(tmp_path, lambda model: model.graph.initializer.append(model.graph.initializer[0])))


def test_unknown_data_types_are_refused(tmp_path: Path) -> None:
    for code in (0, 77):
        with pytest.raises(ModelError, match="data type"):
            read_onnx(written(tmp_path, lambda m, c=code: setattr(m.graph.initializer[0], "data_type", c)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_nan_is_refused_with_its_place_and_infinity_is_not(tmp_path: Path, dtype: type) -> None:
    weight = np.ones((4, 3), dtype)
    weight[1, 1] = -np.inf

    def put(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    read_onnx(written(tmp_path, put))
    weight[2, 1] = np.nan
    with pytest.raises(ModelError, match=r"`w`.*shape \[4, 3\], holds NaN at \[2, 1\]"):
        read_onnx(written(tmp_path, put))


def test_external_data_is_read_lazily_and_survives_replacement(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"pad!" + np.arange(12, dtype=np.float32).tobytes())
    path = external(tmp_path, "w.bin", offset=4)
    model = read_onnx(path)
    assert external_files(path) == (tmp_path / "w.bin",)
    (tmp_path / "other").write_bytes(b"\0" * 52)
    (tmp_path / "other").replace(tmp_path / "w.bin")
    found = model.graph.initializers["w"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy().reshape(-1), np.arange(12))
    assert is_unchangeable(found), "the weight was read into memory"


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "a/../../secret", "", "link", "linked/secret", "nul\0byte"]
)
def test_external_data_outside_the_directory_is_refused(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(b"s" * 48)
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "linked").symlink_to(tmp_path)
    path = external(inside, location)
    for read in (read_onnx, external_files):
        with pytest.raises(ModelError, match="outside the model's directory"):
            read(path)


def test_missing_and_short_external_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"`w\.bin`, which is missing"):
        read_onnx(external(tmp_path, "w.bin"))
    (tmp_path / "w.bin").write_bytes(b"\0" * 48)
    read_onnx(external(tmp_path, "w.bin"))
    for offset, length in ((1, 48), (-1, 48), (0, 47), (0, 10**15), (2**62, 48)):
        with pytest.raises(ModelError, match="needs 48 bytes"):
            read_onnx(external(tmp_path, "w.bin", offset=offset, length=length))
    with pytest.raises(ModelError, match="that is no number"):
        read_onnx(external(tmp_path, "w.bin", offset="many"))


@pytest.mark.parametrize("external_data", [False, True])
def test_what_is_written_is_read_back_and_writing_is_deterministic(tmp_path: Path, external_data: bool) -> None:
    rng = np.random.default_rng(0)
    model = read_onnx(written(tmp_path))
    big = rng.standard_normal((64, 64)).astype(np.float32)
    model.graph.register_initializer(ir.Value(name="unused", const_value=ir.tensor(big, name="unused")))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_onnx(model, tmp_path / name / "m.onnx", external_data=external_data)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == (["m.onnx", "m.onnx.data"] if external_data else ["m.onnx"])
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    again = read_onnx(tmp_path / "one" / "m.onnx")
    np.testing.assert_array_equal(again.graph.initializers["unused"].const_value.numpy(), big)  # type: ignore[union-attr]
    assert digest_graph(again) == digest_graph(model)
    assert weight_bytes(again) == weight_bytes(model) == 48 + big.nbytes
    # The graph in memory is untouched: its weights are still in memory, not in the file just written.
    assert to_bytes(model) == to_bytes(again)


@pytest.mark.parametrize("dtype", [ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN])
def test_packed_and_small_types_survive_external_data(tmp_path: Path, dtype: ir.DataType) -> None:
    model = read_onnx(written(tmp_path))
    array = (np.arange(4097) % 7).astype(dtype.numpy())
    model.graph.register_initializer(ir.Value(name="p", const_value=ir.Tensor(array, dtype, name="p")))
    write_onnx(model, tmp_path / "m.onnx", external_data=True)
    again = read_onnx(tmp_path / "m.onnx")
    assert digest_graph(again) == digest_graph(model)
    np.testing.assert_array_equal(again.graph.initializers["p"].const_value.numpy(), array)  # type: ignore[union-attr]


def test_the_digest_sees_every_kind_of_change() -> None:
    base = ir.from_proto(linear())
    seen = {digest_graph(base)}

    def changed(change: Callable[[ir.Model], object]) -> None:
        model = base.clone()
        change(model)
        digest = digest_graph(model)
        assert digest not in seen
        seen.add(digest)

    changed(lambda m: setattr(m.graph.node("product"), "op_type", "Gemm"))
    changed(lambda m: setattr(m.graph.node("product"), "name", "other"))
    changed(lambda m: setattr(m.graph.inputs[0], "name", "other"))
    changed(lambda m: setattr(m.graph.inputs[0], "shape", ir.Shape(["M", 4])))
    changed(lambda m: m.graph.node("product").attributes.add(ir.AttrFloat32("alpha", 1.0)))
    changed(lambda m: m.graph.node("product").attributes.add(ir.AttrFloat32("alpha", 1.0000001)))
    changed(lambda m: m.graph.node("product").attributes.add(ir.AttrInt64("alpha", 1)))
    changed(lambda m: m.opset_imports.__setitem__("", 21))
    changed(lambda m: m.graph.node("product").metadata_props.__setitem__("key", "value"))
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    weight[3, 2] = np.nextafter(weight[3, 2], np.float32(np.inf))
    changed(lambda m: setattr(m.graph.initializers["w"], "const_value", ir.tensor(weight)))
    changed(lambda m: setattr(m.graph.initializers["w"], "const_value", ir.tensor(weight.reshape(3, 4))))


def test_equal_graphs_have_equal_bytes_and_digests_in_every_process(tmp_path: Path) -> None:
    path = written(tmp_path)
    code = (
        "import sys, hashlib; from edgesmith.serialization import read_onnx, to_bytes;"
        "from edgesmith.digest import digest_graph; from edgesmith.frontends.normalize import normalize;"
        "m = normalize(read_onnx(sys.argv[1])); print(digest_graph(m), hashlib.sha256(to_bytes(m)).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_a_typed_and_a_raw_weight_are_the_same_model(tmp_path: Path) -> None:
    def typed(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [4, 3], list(range(12))))

    raw = Model.load(written(tmp_path))
    assert raw.digest() == Model.load(written(tmp_path, typed)).digest()


def test_weights_that_protobuf_cannot_hold_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_onnx(written(tmp_path))
    big = np.ones((64, 64), np.float32)
    model.graph.register_initializer(ir.Value(name="big", const_value=ir.tensor(big, name="big")))
    monkeypatch.setattr("edgesmith.serialization.SINGLE_FILE_BYTES", 10_000)
    write_onnx(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size >= big.nbytes
    assert digest_graph(read_onnx(tmp_path / "m.onnx")) == digest_graph(model)


def test_a_file_is_written_again_with_the_same_bytes_whatever_the_sizes_of_its_weights(tmp_path: Path) -> None:
    """Weights keep their order, so that a result that went through a file is the one that did not."""
    sizes = {"large": 4000, "small": 3, "larger": 9000, "tiny": 1}
    graph = helper.make_graph(
        [helper.make_node("Concat", ["x", *sizes], ["y"], name="all", axis=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4 + sum(sizes.values())])],
        [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in sizes.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8), path)
    read = read_onnx(path)
    assert list(read.graph.initializers) == list(sizes)
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    write_onnx(read, once)
    write_onnx(read_onnx(once), twice)
    assert once.read_bytes() == twice.read_bytes()


def test_many_weights_go_into_a_file_and_few_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).normal(size=1 << 15).astype(np.float32)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1 << 15]) for name in "xy"]
    proto = helper.make_model(
        helper.make_graph([add], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    )
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)

    def read() -> ir.TensorProtocol:
        tensor = read_onnx(path).graph.initializers["w"].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), weight)
        return tensor

    assert not is_unchangeable(read())
    monkeypatch.setattr("edgesmith.serialization.INLINE_BYTES", 1024)
    assert is_unchangeable(read())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no such place"))
    assert not is_unchangeable(read())
