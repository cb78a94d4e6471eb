"""Reading and writing ONNX files.

A file is data from a stranger. Everything that would make a later step allocate, open another file or compute
nonsense is checked here, before the first tensor is touched: sizes against the bytes that are really there,
external data against the directory that it must stay in, operators against the schemas that are known. Weights
in external data are memory-mapped once, so they stay on disk until used, also when the file is replaced later.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx_ir.passes.common import CheckerPass, TopologicalSortPass

from edgesmith.errors import ModelError, OutputError, UnsupportedOperatorError
from edgesmith.mapped import WeightFile, map_file, release, release_array, tensor_of
from edgesmith.single_file import write_single_file

OLDEST_OPSET = 9
EXTERNAL_DATA_SUFFIX = ".data"
SINGLE_FILE_BYTES = 256 * 2**20
"""More weights than this go into a file of their own: a single one must fit into memory twice to be written or read."""
INLINE_BYTES = 32 * 2**20
"""Above this much weight data a graph goes to runtimes through files, which they map instead of parsing a copy."""
PROCESSOR_DOMAINS = frozenset({"com.microsoft.nchwc", "com.ms.internal.nhwc"})
"""Domains that ONNX Runtime's optimizer uses at its highest level, which is made for one processor."""
RUNTIME_DOMAINS = PROCESSOR_DOMAINS | {"com.microsoft", "ai.onnx.contrib"}
"""Domains without a schema in the `onnx` package that ONNX Runtime may know. It is asked later."""
RUNTIME_NORMS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
"""Operators that ONNX Runtime's optimizer writes into ONNX's own domain, and loads there, whatever the opset has."""
_RUNTIME_DOMAIN = "com.microsoft"

_LARGEST_DIMENSION = 2**31 - 1
_LARGEST_ELEMENT_COUNT = 2**40
_EXTERNAL_THRESHOLD_BYTES = 1024
_EXTERNAL_ALIGNMENT_BYTES = 4096
_CHUNK_ELEMENTS = 1 << 17


def read_onnx(path: str | Path) -> ir.Model:
    """Return the graph in an `.onnx` file, checked, with external weights mapped lazily.

    Raises:
        ModelError, UnsupportedOperatorError: As `read_with_files` does.
    """
    return read_with_files(path)[0]


def read_with_files(path: str | Path) -> tuple[ir.Model, tuple[Path, ...]]:
    """Return the graph in an `.onnx` file as `read_onnx` does, and the files that hold its external data, sorted.

    Raises:
        ModelError: The file is missing, damaged, not ONNX, older than opset 9, not a valid graph, refers to data
            outside its directory, or holds weights that are not numbers.
        UnsupportedOperatorError: It uses an operator that neither ONNX nor ONNX Runtime defines.
    """
    path = Path(path)
    proto = _parse(path)
    _check_tensors(proto, path)
    _check_opset(proto, path)
    files = _external_files(proto, path)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, NotImplementedError, ValueError, TypeError) as error:
        raise _invalid(f"`{path}` cannot be read as a graph: {_last_cause(error)}") from error
    _map_external_data(model, path.parent)
    del proto
    _move_out(model)
    check_graph(model, str(path))
    check_weights(model, str(path))
    return model, files


def external_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files that hold external data of an `.onnx` file, sorted, without reading any weights.

    Raises:
        ModelError: The file is missing or damaged, or refers to data outside its directory.
    """
    path = Path(path)
    if path.is_file() and not _holds(path, b"location"):
        return ()  # no tensor names a file, and the message need not be parsed to say so
    return _external_files(_parse(path), path)


def _external_files(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    files: set[Path] = set()
    for graph in _graphs(proto.graph):
        attributes = (attribute for node in graph.node for attribute in node.attribute)
        constants = (t for a in attributes for t in (*a.tensors, *([a.t] if a.HasField("t") else [])))
        for tensor in (*graph.initializer, *constants):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                needed = _byte_count(prod(tensor.dims), ir.DataType(tensor.data_type))
                files.add(_locate(tensor.external_data, needed, tensor.name, path.parent)[0])
    return tuple(sorted(files))


def _holds(path: Path, word: bytes) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(word) >= 0


def write_onnx(model: ir.Model, path: Path, *, external_data: bool | None = None) -> None:
    """Write `model` to `path`. The same graph gives the same bytes.

    Args:
        model: The graph. It is not changed.
        path: The destination, in a directory that nothing else is written to; not atomic by itself.
        external_data: Put weights into a second file beside it, named after it with `.data` appended. The default
            does so above `SINGLE_FILE_BYTES`.
    """
    _type_initializers(model)
    if external_data is None:
        external_data = weight_bytes(model) > SINGLE_FILE_BYTES
    written: list[ir.TensorProtocol] = []

    def give_back(following: ir.TensorProtocol | None = None, _info: object = None) -> None:
        while written:
            release(written.pop())
        written.extend([following] if following is not None else [])

    if external_data:
        ir.save(
            model,
            path,
            external_data=path.name + EXTERNAL_DATA_SUFFIX,
            size_threshold_bytes=_EXTERNAL_THRESHOLD_BYTES,
            alignment=_EXTERNAL_ALIGNMENT_BYTES,
            align_threshold=0,
            max_workers=1,
            callback=give_back,
        )
        give_back()
    else:
        write_single_file(model, path)


def to_bytes(model: ir.Model) -> bytes:
    """Return `model` as the bytes of one ONNX file, weights included. The same graph gives the same bytes."""
    _type_initializers(model)
    content: bytes = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    return content


def _type_initializers(model: ir.Model) -> None:
    """Give every initializer the type of its tensor, which some passes add and others leave out."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.shape = ir.Shape(value.const_value.shape.numpy())
                value.type = ir.TensorType(value.const_value.dtype)


def tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield every constant of the graph and its subgraphs with its name: initializers and tensor attributes."""
    for graph in [*model.graphs(), *model.functions.values()]:
        if isinstance(graph, ir.Graph):
            for name, value in graph.initializers.items():
                if value.const_value is not None:
                    yield name, value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                found = attribute.value if attribute.type == ir.AttributeType.TENSORS else [attribute.value]
                if attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
                    yield from ((f"{node.name or node.op_type}.{attribute.name}", tensor) for tensor in found)


def weight_bytes(model: ir.Model) -> int:
    """Return the size of all constants in bytes."""
    return sum(tensor.nbytes for _, tensor in tensors(model) if tensor.dtype != ir.DataType.STRING)


def check_graph(model: ir.Model, what: str) -> None:
    """Check that `model` is a valid ONNX graph with inputs, outputs and known operators.

    Args:
        model: The graph. Nodes are put into topological order if they are not; nothing else is changed.
        what: How to call it in the error.

    Raises:
        ModelError: It is not.
        UnsupportedOperatorError: An operator is unknown.
    """
    for side, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        if all(value.is_initializer() for value in values):
            raise _invalid(f"`{what}` has no {side}")
    _check_operators(model, what)
    weights = list(model.graph.initializers.values())
    try:
        TopologicalSortPass()(model)
        with runtime_norms_apart(model):
            CheckerPass()(model)
    except (onnx.checker.ValidationError, ir.passes.PassError, ir.serde.SerdeError, ValueError) as error:
        raise _invalid(f"`{what}` is not a valid ONNX graph: {_last_cause(error)}") from error
    finally:
        # The checker takes large weights out for a while and puts them back behind the small ones.
        model.graph.initializers.clear()
        for value in weights:
            model.graph.initializers.add(value)


@contextmanager
def runtime_norms_apart(model: ir.Model) -> Iterator[None]:
    """Hold norms of ONNX Runtime's optimizer in its own domain meanwhile, where ONNX's tools let them be.

    It writes them into ONNX's domain, where the opset may have no such operator.
    """
    opset, imported = model.opset_imports.get("", 0), _RUNTIME_DOMAIN in model.opset_imports
    missing = {op_type for op_type in RUNTIME_NORMS if not onnx.defs.has(op_type, max(opset, 1))}
    apart = [node for node in model.graph.all_nodes() if not node.domain and node.op_type in missing]
    for node in apart:
        node.domain = _RUNTIME_DOMAIN
    if apart:
        model.opset_imports.setdefault(_RUNTIME_DOMAIN, 1)
    try:
        yield
    finally:
        # Not those from before: a converter may have written the nodes anew.
        for node in model.graph.all_nodes():
            if apart and node.domain == _RUNTIME_DOMAIN and node.op_type in missing:
                node.domain = ""
        if apart and not imported:
            model.opset_imports.pop(_RUNTIME_DOMAIN, None)


def check_weights(model: ir.Model, what: str) -> None:
    """Check that no constant holds NaN. Infinity passes, because masks use it.

    Raises:
        ModelError: One does. The message names it.
    """
    for name, tensor in tensors(model):
        if not tensor.dtype.is_floating_point():
            continue
        array = tensor.numpy().reshape(-1)
        for start in range(0, array.size, _CHUNK_ELEMENTS):
            piece = array[start : start + _CHUNK_ELEMENTS]
            found = _holds_nan(piece)
            release_array(piece)
            if found:
                index = np.unravel_index(start + int(np.isnan(piece).argmax()), tensor.shape.numpy())
                raise ModelError(
                    f"Tensor `{name}` of `{what}`, shape {list(tensor.shape.numpy())}, "
                    f"holds NaN at {[int(i) for i in index]}.",
                    expected="weights that are numbers",
                    why="Every output that depends on it would be NaN, and no measurement would mean anything.",
                    fix="Export the model again from a checkpoint that works; training may have diverged.",
                )


def _holds_nan(values: NDArray[Any]) -> bool:
    if values.dtype == np.float16:
        # NumPy widens halves one by one; their bits tell as well: the exponent is full and the mantissa is not 0.
        return bool((values.view(np.uint16) & 0x7FFF).max() > 0x7C00)
    return bool(np.isnan(values).any())


def require_model_file(path: Path) -> None:
    """Refuse a path at which there is no file.

    Raises:
        ModelError: There is nothing, or a directory.
    """
    if path.is_file():
        return
    what = "is a directory" if path.is_dir() else "does not exist"
    raise ModelError(
        f"Model file `{path}` {what}.",
        expected="an .onnx file",
        why="There is nothing to read.",
        fix="Check the spelling and the working directory.",
    )


def _parse(path: Path) -> onnx.ModelProto:
    require_model_file(path)
    try:
        if path.stat().st_size > 2**31:
            raise _damaged(path, "it is larger than protobuf allows (2 GiB)")
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"the system reports: {error.strerror}") from error
    if content.startswith(b"version https://git-lfs"):
        raise _damaged(path, "it is a Git LFS pointer; the content was not downloaded", "Run `git lfs pull` there.")
    try:
        proto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise _damaged(path, _describe(content)) from error
    if not proto.HasField("graph") or not proto.ir_version or not proto.opset_import:
        raise _damaged(path, _describe(content))
    return proto


def _describe(content: bytes) -> str:
    if not content:
        return "it is empty"
    head = content[:512]
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return f"it is text, beginning with {head[:40].decode()!r}"
    return "it is truncated, damaged, or another format"


def _check_opset(proto: onnx.ModelProto, path: Path) -> None:
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"`{path}` uses ONNX opset {opset}.",
            expected=f"opset {OLDEST_OPSET} to {newest}",
            why="Older operators have meanings that no current runtime keeps; newer ones are not known here.",
            fix=("Upgrade the `onnx` package, or e" if opset > newest else "E") + "xport the model with opset 20.",
        )


def _check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Check every tensor and shape in the file against the bytes that are there, subgraphs and functions included."""
    for graph in _graphs(proto.graph):
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise _invalid(f"Initializer `{name}` of `{path}` is sparse, which is not supported")
        seen: set[str] = set()
        for tensor in graph.initializer:
            if not tensor.name or tensor.name in seen:
                raise _invalid(f"`{path}` holds two initializers with the name `{tensor.name}`, or one without a name")
            seen.add(tensor.name)
            _check_tensor(tensor, path)
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_shape(value, path)
        for node in graph.node:
            _check_attributes(node, path)
    for function in proto.functions:
        for node in function.node:
            _check_attributes(node, path)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for subgraph in attribute.graphs:
                yield from _graphs(subgraph)


def _check_attributes(node: onnx.NodeProto, path: Path) -> None:
    for attribute in node.attribute:
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise _invalid(
                f"Node `{node.name}` ({node.op_type}) of `{path}` holds a sparse tensor, which is not supported"
            )
        for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
            _check_tensor(tensor, path, f"{node.name or node.op_type}.{attribute.name}")


def _check_shape(value: onnx.ValueInfoProto, path: Path) -> None:
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
    if any(not 0 <= d <= _LARGEST_DIMENSION for d in shape) or prod(d for d in shape if d) > _LARGEST_ELEMENT_COUNT:
        raise _absurd(f"Value `{value.name}` of `{path}`", shape)


def _check_tensor(tensor: onnx.TensorProto, path: Path, name: str = "") -> None:
    name = name or tensor.name
    dims = list(tensor.dims)
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError as error:
        raise _invalid(f"Tensor `{name}` of `{path}` has the unknown data type {tensor.data_type}") from error
    if dtype == ir.DataType.UNDEFINED:
        raise _invalid(f"Tensor `{name}` of `{path}` has no data type")
    if any(not 0 <= d <= _LARGEST_DIMENSION for d in dims) or prod(dims) > _LARGEST_ELEMENT_COUNT:
        raise _absurd(f"Tensor `{name}` of `{path}`", dims)
    elements = prod(dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if dtype == ir.DataType.STRING:
            raise _invalid(f"Tensor `{name}` of `{path}` keeps strings in external data, which is not supported")
        _locate(tensor.external_data, _byte_count(elements, dtype), name, path.parent)
        return
    if tensor.HasField("raw_data") and dtype != ir.DataType.STRING:
        found, needed, unit = len(tensor.raw_data), _byte_count(elements, dtype), "bytes"
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        found, needed, unit = len(getattr(tensor, field)), _entry_count(elements, dtype), "values"
    if found != needed:
        raise _invalid(
            f"Tensor `{name}` of `{path}` with shape {dims} and type {dtype.name} holds {found} {unit} "
            f"where {needed} are needed"
        )


def _byte_count(elements: int, dtype: ir.DataType) -> int:
    return -(-elements * dtype.bitwidth // 8)


def _entry_count(elements: int, dtype: ir.DataType) -> int:
    """Return how many entries of a typed protobuf field hold `elements` values."""
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * elements
    if dtype == ir.DataType.STRING:
        return elements
    return _byte_count(elements, dtype) if dtype.bitwidth < 8 else elements


def _locate(entries: object, needed: int, name: str, directory: Path) -> tuple[Path, int]:
    """Return file and offset of external data after checking that it is inside `directory` and long enough."""
    info = entries if isinstance(entries, Mapping) else {entry.key: entry.value for entry in entries}  # type: ignore[attr-defined]
    location = str(info.get("location", ""))
    # A path cannot hold a null byte; the empty location is refused below.
    location = "" if "\0" in location else location
    relative = Path(location)
    file = Path(os.path.realpath(directory / relative))
    inside = file.is_relative_to(os.path.realpath(directory))
    if not location or relative.is_absolute() or ".." in relative.parts or not inside:
        raise ModelError(
            f"Tensor `{name}` keeps its data in `{location}`, outside the model's directory `{directory}`.",
            expected="a relative path to a file inside that directory",
            why="A model file from a stranger could otherwise read any file of this machine.",
            fix="Copy the data file beside the model (with `cp -L` where it is a link) and correct the location.",
        )
    try:
        offset, length = int(info.get("offset") or 0), int(info.get("length") or needed)
    except ValueError as error:
        raise _invalid(f"Tensor `{name}` has external data with an offset or length that is no number") from error
    if not file.is_file():
        raise ModelError(
            f"Tensor `{name}` keeps its data in `{location}`, which is missing from `{directory}`.",
            expected="the data file beside the .onnx file",
            why="Without it the model has no weights.",
            fix="Copy the data file there; the two files belong together.",
        )
    size = file.stat().st_size
    if offset < 0 or length != needed or offset + needed > size:
        raise _invalid(
            f"Tensor `{name}` needs {needed} bytes of `{location}` and claims {length} at offset {offset}; "
            f"the file has {size} bytes"
        )
    return file, offset


def _map_external_data(model: ir.Model, directory: Path) -> None:
    maps: dict[Path, NDArray[np.uint8]] = {}

    def mapped(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        dtype, shape = tensor.dtype, tensor.shape
        info = {"location": os.fspath(tensor.location), "offset": tensor.offset, "length": tensor.length}
        file, offset = _locate(info, tensor.nbytes, tensor.name, directory)
        if not tensor.nbytes:
            return ir.Tensor(np.empty(shape.numpy(), dtype.numpy()), dtype, shape=shape, name=tensor.name)
        if file not in maps:
            maps[file] = map_file(file)
        return tensor_of(maps[file][offset : offset + tensor.nbytes], dtype, ir.Shape(shape.numpy()), tensor.name)

    _replace_tensors(model, lambda tensor: mapped(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor)


def _move_out(model: ir.Model) -> None:
    """Detach all constants from the protobuf message, which would otherwise stay in memory, and be copied at each look.

    Where they are many, they go into a file, so that they are hashed once, and runtimes map them without a copy.
    """
    many = weight_bytes(model) > INLINE_BYTES
    file = WeightFile()

    def moved(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.serde.TensorProtoTensor) or tensor.dtype == ir.DataType.STRING:
            return tensor
        content = np.frombuffer(tensor.tobytes(), np.uint8)
        detached = tensor_of(content, tensor.dtype, ir.Shape(tensor.shape.numpy()), tensor.name)
        try:
            return file.keep(detached) if many else detached
        except OutputError:
            # No room for temporary files: memory serves as well, only more slowly.
            return detached

    _replace_tensors(model, moved)


def _replace_tensors(model: ir.Model, changed: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    for graph in [*model.graphs(), *model.functions.values()]:
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            if value.const_value is not None:
                value.const_value = changed(value.const_value)
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    node.attributes[name] = ir.AttrTensor(name, changed(attribute.as_tensor()))


def _check_operators(model: ir.Model, what: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    for node in model.graph.all_nodes():
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain in RUNTIME_DOMAINS or node.op_identifier() in model.functions:
            continue
        if not domain and node.op_type in RUNTIME_NORMS:
            continue
        version = model.opset_imports.get(node.domain, model.opset_imports.get(domain, newest))
        if not onnx.defs.has(node.op_type, version, domain):
            known_since = onnx.defs.has(node.op_type, domain)
            raise UnsupportedOperatorError(
                f"Node `{node.name or node.outputs[0].name}` of `{what}` uses the operator "
                f"`{f'{domain}.' if domain else ''}{node.op_type}`"
                + (f", which opset {version} does not have." if known_since else ", which is unknown."),
                expected="operators of ONNX (`ai.onnx`, `ai.onnx.ml`), of ONNX Runtime, or functions in the file",
                why="An operator without a definition can be neither run nor rewritten nor compiled.",
                fix="Export the model so that this operator is written out in standard ones, or as an ONNX function.",
            )


def _last_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:400]


def _invalid(what: str) -> ModelError:
    return ModelError(
        f"{what}.",
        expected="a complete ONNX graph as an exporter writes it",
        why="Running it would fail later, or compute something else than was meant.",
        fix="Export the model again; if the exporter wrote this, report it there.",
    )


def _absurd(what: str, shape: list[int]) -> ModelError:
    return ModelError(
        f"{what} has the shape {shape}.",
        expected=f"dimensions from 0 to {_LARGEST_DIMENSION} and at most {_LARGEST_ELEMENT_COUNT} elements",
        why="No memory holds such a tensor; a dimension that varies must have a name instead of a number.",
        fix="Export the model again, with named dynamic dimensions.",
    )


def _damaged(path: Path, why: str, fix: str = "Download or export the file again.") -> ModelError:
    return ModelError(
        f"`{path}` is not an ONNX model: {why}.",
        expected="an ONNX file (protobuf)",
        why="Nothing can be read from it.",
        fix=fix,
    )
