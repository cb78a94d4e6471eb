"""Reads what TensorRT tells about a built engine, and finds in it what the graph alone cannot show.

Layers are those of `trtexec --exportLayerInfo` or of the engine inspector, as JSON, from an engine that was built with
detailed profiling verbosity; times are those of `trtexec --exportProfile`. Both formats are as NVIDIA's documentation
of the engine inspector and the public tool trt-engine-explorer describe them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesmith.engine import LARGEST_BYTES, EngineFinding, EngineLayer, EngineReport
from edgesmith.errors import TargetError
from edgesmith.model import Model
from edgesmith_tensorrt.lints.reading import PAIRS, name_of, nodes_of

_TYPES: Sequence[tuple[str, str]] = (
    (r"int4", "int4"),
    (r"fp4|e2m1", "float4"),
    (r"int8", "int8"),
    (r"fp8|e4m3|float8", "float8"),
    (r"bf16|bfloat16", "bfloat16"),
    (r"fp16|half|float16", "float16"),
    (r"fp32|float", "float32"),
)
"""What a tensor's format says to its number format, narrowest first."""
_ORDER = [name for _, name in _TYPES]
_QUANTIZED = frozenset(("int8", "float8", "int4", "float4"))
_FLOATS = frozenset(("float32", "float16", "bfloat16"))
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_LARGE_SHARE = 0.1
"""Findings about time are for at least a tenth of it."""


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    name: str = Field(default="", alias="Name")
    form: str = Field(default="", alias="Format/Datatype")
    datatype: str = Field(default="", alias="Datatype")

    @property
    def type(self) -> str:
        """Its number format; empty where it is not told, and for whole numbers and truth values."""
        text = (self.datatype or self.form).lower()
        return next((name for pattern, name in _TYPES if re.search(pattern, text)), "")


class _Layer(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    name: str = Field(alias="Name")
    kind: str = Field(default="", alias="LayerType")
    inputs: tuple[_Tensor, ...] = Field(default=(), alias="Inputs")
    outputs: tuple[_Tensor, ...] = Field(default=(), alias="Outputs")
    origin: str = Field(default="", alias="Origin")
    metadata: str = Field(default="", alias="Metadata")

    @property
    def precision(self) -> str:
        """The narrowest format that it reads: a product of codes with a float residual computes on codes."""
        types = [tensor.type for tensor in self.inputs if tensor.type]
        return min(types, key=_ORDER.index, default="")

    @property
    def nodes(self) -> tuple[str, ...]:
        """The graph's nodes in it: from the metadata, else from the name, which joins them with a plus."""
        found = _ONNX_LAYER.findall(self.metadata)
        return tuple(dict.fromkeys(found or (part.strip() for part in self.name.split(" + "))))

    @property
    def is_reformat(self) -> bool:
        """Whether it only changes how a tensor is stored."""
        return self.kind == "Reformat" or self.name.startswith("Reformatting CopyNode")


def read_engine(model: Model, layers: str, times: str = "") -> EngineReport:
    """Return what an engine does, and what is wrong with it.

    Args:
        model: The graph that the engine was built from.
        layers: JSON of the engine inspector.
        times: JSON of `--exportProfile`; empty where nothing was timed.

    Raises:
        TargetError: A text is not of these formats, or has the names of layers only.
    """
    raw = _read_layers(layers)
    clock = _read_times(times) if times else {}
    report = tuple(
        EngineLayer(
            name=layer.name,
            kind=layer.kind,
            precision=layer.precision,
            nodes=layer.nodes,
            time_ms=clock.get(layer.name, 0.0 if clock else None),
        )
        for layer in raw
    )
    return EngineReport(layers=report, findings=tuple(_findings(model, raw, clock)))


def _findings(model: Model, layers: Sequence[_Layer], clock: Mapping[str, float]) -> Iterator[EngineFinding]:
    pairs = {name_of(node) for node in nodes_of(model.ir, *PAIRS)}
    unfused = [layer for layer in layers if _is_pair(layer, pairs)]
    if unfused:
        yield EngineFinding(
            rule="engine-unfused-pairs",
            hazard=f"{len(unfused)} Q/DQ are layers of their own{_cost(unfused, clock)}: nothing fused them.",
            fix="Leave the products behind them out of the quantizing step, or quantize what stands between.",
            layers=tuple(layer.name for layer in unfused),
        )
    converting = [layer for layer in layers if layer.is_reformat and layer not in unfused and _converts(layer)]
    if converting:
        yield EngineFinding(
            rule="engine-type-reformats",
            hazard=f"{len(converting)} reformats change the type of a tensor{_cost(converting, clock)}.",
            fix="Let neighbours compute in one type; the ledger says what stays in float32 and why.",
            layers=tuple(layer.name for layer in converting),
        )
    yield from _in_float(model, layers, pairs)
    total = sum(clock.values())
    reformats = [layer for layer in layers if layer.is_reformat]
    spent = sum(clock.get(layer.name, 0.0) for layer in reformats)
    if total and spent > _LARGE_SHARE * total:
        yield EngineFinding(
            rule="engine-reformats",
            hazard=f"{len(reformats)} reformats take {spent / total:.0%} of the time.",
            fix="Round channels to the alignment of the device, and keep quantized regions whole.",
            layers=tuple(layer.name for layer in reformats),
        )


def _is_pair(layer: _Layer, pairs: set[str]) -> bool:
    """Return whether a layer holds nothing but Q or DQ of activations."""
    if layer.origin == "QDQ" or layer.kind in ("Quantize", "Dequantize"):
        return True
    return bool(pairs) and set(layer.nodes) <= pairs


def _in_float(model: Model, layers: Sequence[_Layer], pairs: set[str]) -> Iterator[EngineFinding]:
    """Yield a finding for products whose inputs are all quantized in the graph and that the engine runs in float."""
    quantized = {
        name_of(node)
        for node in nodes_of(model.ir, "MatMul", "Gemm", "Conv", "ConvTranspose")
        if all(value is not None and _behind_pair(value, pairs) for value in node.inputs[:2])
    }
    wrong = [layer for layer in layers if quantized & set(layer.nodes) and layer.precision in _FLOATS]
    if wrong:
        yield EngineFinding(
            rule="engine-float-products",
            hazard=f"{len(wrong)} products are quantized in the graph and run in float in the engine.",
            fix="Check the alignment of their channels; where it fits, leave them out of the quantizing step.",
            layers=tuple(layer.name for layer in wrong),
        )


def _behind_pair(value: Any, pairs: set[str]) -> bool:
    producer = value.producer()
    return producer is not None and name_of(producer) in pairs


def _converts(layer: _Layer) -> bool:
    before, after = ({tensor.type for tensor in side if tensor.type} for side in (layer.inputs, layer.outputs))
    return bool(before and after) and before != after


def _cost(layers: Sequence[_Layer], clock: Mapping[str, float]) -> str:
    if not clock:
        return ""
    spent, total = sum(clock.get(layer.name, 0.0) for layer in layers), sum(clock.values())
    return f" and take {spent:.3f} ms ({spent / total:.0%})" if total else ""


def _read_layers(text: str) -> tuple[_Layer, ...]:
    content = _parse(text, "layers")
    entries = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise _unreadable("layers", "there is no list of Layers in it")
    if all(isinstance(entry, str) for entry in entries):
        raise TargetError(
            f"The description of the engine has the names of its {len(entries)} layers and nothing else.",
            expected="layers with types, inputs and outputs",
            why="Precision and fusions cannot be seen from names.",
            fix="Build the engine with --profilingVerbosity=detailed, as build.sh and build.py do, and export again.",
        )
    try:
        return tuple(_Layer.model_validate(entry) for entry in entries)
    except ValidationError as error:
        first = error.errors()[0]
        raise _unreadable("layers", f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error


def _read_times(text: str) -> dict[str, float]:
    """Return layer to its average time in milliseconds. The first entry counts the runs; a layer may come twice."""
    content = _parse(text, "times")
    if not isinstance(content, list):
        raise _unreadable("times", "it is no list")
    clock: dict[str, float] = {}
    for entry in content:
        if not isinstance(entry, dict) or "name" not in entry:
            continue
        time_ms = entry.get("averageMs")
        if isinstance(time_ms, bool) or not isinstance(time_ms, int | float) or not 0 <= time_ms < float("inf"):
            raise _unreadable("times", f"averageMs of {entry['name']} is {time_ms!r}")
        clock[str(entry["name"])] = clock.get(str(entry["name"]), 0.0) + float(time_ms)
    return clock


def _parse(text: str, what: str) -> Any:
    if len(text) > LARGEST_BYTES:
        raise _unreadable(what, f"it has {len(text)} bytes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(what, f"it is no JSON ({error})") from error


def _unreadable(what: str, problem: str) -> TargetError:
    source = "--exportLayerInfo" if what == "layers" else "--exportProfile"
    return TargetError(
        f"The {what} of the engine cannot be read: {problem}.",
        expected=f"the JSON that trtexec {source} or the engine inspector writes",
        why="What an engine does is taken from there and from nowhere else.",
        fix=f"Export again with trtexec --loadEngine=engine.plan {source}=FILE.",
    )
