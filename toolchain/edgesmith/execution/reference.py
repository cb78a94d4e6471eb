"""ReferenceSession: the ONNX Runtime session that every rewrite is checked against.

Numbers from here define what a graph computes. The default level is "basic": it is the highest one at which
ONNX Runtime agreed with the ONNX reference on every quantized form that was tried.
"""

import ctypes
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgesmith.errors import DataError, ModelError
from edgesmith.execution.half_rounding import uses_half, with_half_rounding
from edgesmith.execution.handover import write_linked
from edgesmith.graph.edit import constant_tensor
from edgesmith.serialization import INLINE_BYTES

Optimization = Literal["disabled", "basic", "extended", "all", "default"]

_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "default": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

_FLOAT8 = {
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
}

# ONNX Runtime takes every Q/DQ pair for an integer one. The first makes nodes that have no eight-bit floats. The others
# drop a Relu or Clip before the codes, since unsigned codes with zero point 0 cannot be negative; these can.
_FLOAT8_FAULTS = ("QDQSelectorActionTransformer", "ReluQuantRewrite", "ClipQuantRewrite")

# ONNX Runtime writes a bias in float as int32 codes with the scale of input times weight. In float16 that product is
# often zero, and the bias is lost. Below the level of fusions nothing is gained by it, and biases are as written.
_FLOAT16_FAULTS = ("WeightBiasQuantization",)

# ONNX Runtime's own exceptions share no base class below Exception.
_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
)

_NODE_PATTERNS = (
    re.compile(r"running (?P<op>\S+) node\. Name:'(?P<name>[^']*)'"),
    re.compile(r"Node \((?P<name>[^)]*)\) Op \((?P<op>[^)]*)\)"),
    re.compile(r'In Node, \("(?P<name>[^"]*)", (?P<op>\w+)'),
    re.compile(r"implementation for (?P<op>\w+)\([^)]*\) node with the name '(?P<name>[^']*)'"),
    re.compile(r"input '(?P<name>[^']*)' is not a graph input"),
    re.compile(r"error: (?P<op>[\w.:]+)\(-?\d+\) is not a registered"),
)

_NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bool)": np.dtype(np.bool_),
    **{f"tensor({kind})": np.dtype(kind) for kind in ("int8", "int16", "int32", "int64")},
    **{f"tensor({kind})": np.dtype(kind) for kind in ("uint8", "uint16", "uint32", "uint64")},
    "tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16),
    "tensor(float8e4m3fn)": np.dtype(ml_dtypes.float8_e4m3fn),
    "tensor(float8e4m3fnuz)": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "tensor(float8e5m2)": np.dtype(ml_dtypes.float8_e5m2),
    "tensor(float8e5m2fnuz)": np.dtype(ml_dtypes.float8_e5m2fnuz),
}

_PACKED_TYPES = {
    "tensor(int4)": ir.DataType.INT4,
    "tensor(uint4)": ir.DataType.UINT4,
    "tensor(int2)": ir.DataType.INT2,
    "tensor(uint2)": ir.DataType.UINT2,
}


class ReferenceSession:
    """Runs a graph in ONNX Runtime on the CPU, exactly as written.

    Args:
        model: The graph, or the path of an ONNX file. Never changed.
        taps: Names of inner values to return beside the outputs.
        only_taps: Return the taps alone, and compute nothing that they do not need.
        optimization: How far ONNX Runtime may rewrite the graph. "basic" is the numeric reference;
            "all" is as fast as it gets without the known faults of ONNX Runtime: eight-bit floats load, and at any
            level matrix products over packed weights stay in float, as do biases beside scales in float16. "default"
            is what a user gets who sets no option, faults included.
        threads: Threads used inside one operator.
        prepack: Whether constant weights are copied into the order that products read them in. Without, loading a
            graph needs next to no memory for weights in files, and running it is slower.
        round_half: Whether values in float16 are rounded to it, as on a device that computes in float16. ONNX Runtime
            by itself keeps them in float32 on a CPU, where neither overflow nor lost digits show.
        pool: Whether memory for values is kept from run to run. Many runs gain by it, since the system need not hand
            out and clear the same pages each time; the session then holds what its largest run needed, and a little
            more.

    Raises:
        ModelError: ONNX Runtime does not load the graph; the message names the node or operator when it is known.
    """

    def __init__(
        self,
        model: ir.Model | Path | str,
        *,
        taps: Sequence[str] = (),
        only_taps: bool = False,
        optimization: Optimization = "basic",
        threads: int = 1,
        prepack: bool = True,
        pool: bool = False,
        round_half: bool = False,
    ) -> None:
        if isinstance(model, ir.Model):
            graph: ir.Model | None = model
        else:
            _require_file(Path(model))
            # A path without taps is opened by the runtime itself; only the upper levels and float16 need a look inside.
            graph = _read(Path(model)) if taps or round_half or optimization in ("extended", "all") else None
        if round_half and graph is not None and uses_half(graph):
            model = graph = with_half_rounding(graph)
        options = ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimization]
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Patterns are kept for every shape that was seen, and few runs want the memory of one run only.
        options.enable_cpu_mem_arena, options.enable_mem_pattern = pool, False
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        disabled: list[str] = []
        if optimization != "default":
            # This rounds activations to int8 wherever weights are packed, and zeroes fp16 outputs at "extended".
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
            disabled += _FLOAT8_FAULTS if graph is not None and _uses_float8(graph) else ()
            disabled += _FLOAT16_FAULTS if graph is None or _has_float16_scales(graph) else ()
        if taps:
            # Data streams through such a session, and on the CPU this fused kernel is slower than its parts.
            disabled.append("SkipLayerNormFusion")
        try:
            if isinstance(model, ir.Model) or taps:
                self._session = _open(
                    with_taps(graph or _read(Path(str(model))), taps, only=only_taps), options, disabled
                )
            else:
                self._session = _session(str(model), options, disabled)
        except _ORT_ERRORS as error:
            raise _load_error(error, graph) from error
        except OSError as error:
            raise _file_error(error) from error
        self._types = {value.name: value.type for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        self._shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._exotic = any(map(_is_exotic, self._types.values()))

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs, in order."""
        return tuple(value.name for value in self._session.get_inputs())

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what `run` returns: the graph's outputs, then the taps."""
        return tuple(value.name for value in self._session.get_outputs())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return outputs and taps by value name.

        Args:
            inputs: One array per graph input, with the dtype and shape that the graph declares.

        Raises:
            DataError: An input is missing, unknown, or of the wrong dtype or shape.
            ModelError: An operator failed; the message names its node.
        """
        self._check(inputs)
        names = list(self.output_names)
        try:
            if not self._exotic:
                return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
            feeds = {name: _to_ort(array) for name, array in inputs.items()}
            values = self._session.run_with_ort_values(names, feeds)
        except _ORT_ERRORS as error:
            raise _run_error(error) from error
        return {name: _to_numpy(value) for name, value in zip(names, values, strict=True)}

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        wanted = self.input_names
        missing = [name for name in wanted if name not in inputs]
        unknown = [name for name in inputs if name not in wanted]
        if missing or unknown:
            raise DataError(
                f"the data does not match the model's inputs: missing {missing or 'none'}, unknown {unknown or 'none'}",
                expected=f"arrays named {', '.join(wanted)}",
                why="every input of the graph must be fed, and by its own name",
                fix="rename the arrays, or choose the columns that feed the model",
            )
        for name, array in inputs.items():
            dtype = _NUMPY_TYPES.get(self._types[name])
            if dtype is not None and array.dtype != dtype:
                raise _input_error(name, f"is {array.dtype}", f"{dtype}")
            declared = self._shapes[name]
            wrong = len(declared) != array.ndim or any(
                isinstance(want, int) and want != have for want, have in zip(declared, array.shape, strict=True)
            )
            if wrong and dtype is not None:
                raise _input_error(name, f"has shape {list(array.shape)}", f"shape {declared}")


def _input_error(name: str, found: str, expected: str) -> DataError:
    return DataError(
        f"input {name!r} {found}",
        expected=expected,
        why="the graph was built for that form and cannot run on another",
        fix="convert the data, or check which model it was made for",
    )


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(
            f"{path} is not a file",
            expected="the path of an ONNX model",
            why="there is nothing to load",
            fix="check the path",
        )


def _read(path: Path) -> ir.Model:
    try:
        return ir.load(path)
    except (DecodeError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as an ONNX model: {error}",
            expected="a complete ONNX protobuf file",
            why="the file is truncated, or of another format",
            fix="export or download the file again",
        ) from error


def _uses_float8(model: ir.Model) -> bool:
    """Return whether the graph quantizes to float8: ONNX Runtime's Q/DQ fusion then builds invalid nodes."""
    for node in model.graph.all_nodes():
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        output_dtype = node.attributes.get("output_dtype")
        if output_dtype is not None and ir.DataType(output_dtype.as_int()) in _FLOAT8:
            return True
        if any(value is not None and value.dtype in _FLOAT8 for value in node.inputs):
            return True
    return False


def _has_float16_scales(model: ir.Model) -> bool:
    """Return whether codes may have scales in float16."""
    pairs = (node for node in model.graph.all_nodes() if node.op_type == "DequantizeLinear" and len(node.inputs) > 1)
    return any(_may_be_float16(node.inputs[1]) for node in pairs)


def _may_be_float16(value: ir.Value | None) -> bool:
    """Return whether a value is in float16, or of a type that the graph does not state, as it need not."""
    constant = constant_tensor(value)
    dtype = constant.dtype if constant is not None else value.dtype if value is not None else None
    return dtype in (None, ir.DataType.FLOAT16)


def with_taps(model: ir.Model, taps: Sequence[str], *, only: bool = False) -> ir.Model:
    """Return a copy whose outputs include `taps`, or are these alone; the model itself if there are none."""
    if not taps:
        return model
    copy = model.clone()
    if only:
        copy.graph.outputs.clear()
    present = {value.name for value in copy.graph.outputs}
    values = {value.name: value for node in copy.graph for value in node.outputs}
    values |= {value.name: value for value in (*copy.graph.inputs, *copy.graph.initializers.values())}
    for name in dict.fromkeys(taps):
        if name not in values:
            raise ModelError(
                f"the graph has no value named {name!r}",
                expected="the name of a value computed in the main graph",
                why="it was asked for as a tap",
                fix="list the graph's values with `edgesmith inspect`",
            )
        if name not in present:
            copy.graph.outputs.append(values[name])
    if only:
        common_passes.RemoveUnusedNodesPass()(copy)
    return copy


def _open(model: ir.Model, options: ort.SessionOptions, disabled: list[str]) -> ort.InferenceSession:
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    if not external and sum(tensor.nbytes for tensor in tensors) < INLINE_BYTES:
        return _session(ir.to_proto(model).SerializeToString(), options, disabled)
    # The runtime has its own mapping of the weights once it is loaded, so the files can go.
    with tempfile.TemporaryDirectory(prefix="edgesmith-", ignore_cleanup_errors=True) as folder:
        return _session(str(write_linked(model, Path(folder))), options, disabled)


def _session(source: bytes | str, options: ort.SessionOptions, disabled: list[str]) -> ort.InferenceSession:
    return ort.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled or None
    )


def _is_exotic(kind: str) -> bool:
    """Return whether ONNX Runtime's Python layer has no NumPy type for this tensor type."""
    return kind in _PACKED_TYPES or kind == "tensor(bfloat16)" or "float8" in kind


def _to_ort(array: NDArray[Any]) -> ort.OrtValue:
    dtype = ir.DataType.from_numpy(array.dtype)
    if dtype in _FLOAT8 or dtype == ir.DataType.BFLOAT16:
        plain = np.ascontiguousarray(array).view(np.uint8 if dtype in _FLOAT8 else np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(plain, int(dtype))
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _to_numpy(value: ort.OrtValue) -> NDArray[Any]:
    """Return a value of any tensor type, also of those that ONNX Runtime has no NumPy type for."""
    kind = value.data_type()
    if not _is_exotic(kind):
        return np.asarray(value.numpy())
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    shape = tuple(value.shape())
    if kind in _PACKED_TYPES:
        packed = ir.PackedTensor(np.frombuffer(raw, np.uint8), _PACKED_TYPES[kind], shape=ir.Shape(shape))
        return packed.numpy()
    return np.frombuffer(raw, _NUMPY_TYPES[kind]).reshape(shape)


def _locate(message: str) -> str:
    """Return the node or operator that a runtime message is about, or an empty string."""
    for pattern in _NODE_PATTERNS:
        found = pattern.search(message)
        if found:
            parts = found.groupdict()
            name = f" {parts['name']!r}" if parts.get("name") else ""
            return f"{parts.get('op') or 'value'}{name}"
    return ""


def _load_error(error: Exception, graph: ir.Model | None) -> ModelError:
    message = str(error)
    place = _locate(message)
    if graph is not None and place and "'" not in place:
        operator = place.rpartition(":")[2]
        named = next((node.name for node in graph.graph.all_nodes() if node.op_type == operator), None)
        place += f" {named!r}" if named else ""
    return ModelError(
        f"ONNX Runtime does not load the graph{f', at {place}' if place else ''}: {_plain(message)}",
        expected="a valid graph made of operators that ONNX Runtime implements",
        why="every graph must run in the numeric reference, or no rewrite of it can be checked",
        fix="check the named node with `onnx.checker`, or export the model again with standard operators",
    )


def _file_error(error: OSError) -> ModelError:
    return ModelError(
        f"the weights cannot be handed to ONNX Runtime: {error}",
        expected="external data files beside the model, and room for a copy in the temporary directory",
        why="large weights reach the runtime through a file",
        fix="copy the missing file next to the model, or free some space (TMPDIR names the directory)",
    )


def _run_error(error: Exception) -> ModelError:
    message = str(error)
    place = _locate(message)
    return ModelError(
        f"the graph failed while it ran{f', at {place}' if place else ''}: {_plain(message)}",
        expected="inputs whose shapes and values every operator takes",
        why="ONNX Runtime stopped inside that operator",
        fix="check the shape and range of the inputs, then the named node",
    )


def _plain(message: str) -> str:
    """Return a runtime message without its code prefix and source locations."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", message.strip())
    return re.sub(r"\S*/\S+\.(?:cc|h):\d+ .*?\) ", "", text).strip()
