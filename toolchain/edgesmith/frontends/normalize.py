"""Normalization: the same graph in the one form that everything else is written against.

Operators of opset 20 or later, no functions, constants computed, nothing dead or doubled, names unique, shapes known.
Every rewrite is proven by running the graph before and after; one that changes an output is undone and named.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime
from numpy.typing import NDArray
from onnxscript import rewriter, version_converter
from onnxscript.optimizer import FOLDED_FROM_KEY, fold_constants
from onnxscript.rewriter.rules import common as rules

from edgesmith.collector import spare_what_exists
from edgesmith.digest import content_hash, digest_graph
from edgesmith.errors import DataError, ModelError
from edgesmith.execution.half_rounding import uses_half
from edgesmith.execution.handover import obstacle_to_running
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import BATCHES, LENGTHS, dimensions_for
from edgesmith.execution.sample import sample_inputs
from edgesmith.frontends.equality import HALF_TOLERANCE, RELATIVE_TOLERANCE, find_difference
from edgesmith.frontends.runtime_operators import KINDS, has_fused, unfuse, what_stays
from edgesmith.frontends.torch_export import quiet
from edgesmith.frontends.widening import with_float32
from edgesmith.serialization import check_graph, runtime_norms_apart, weight_bytes

TARGET_OPSET = 20
_NATIVE_OPSET = 18
"""From here on the onnxscript converter, which edits the graph in place, knows every operator."""
_TARGET_IR_VERSION = 10

_ROUNDS = 8
_FOLDED_ELEMENTS = 1 << 18
"""A folded constant may hold this many elements, or as many as the constants it is computed from."""
_GROWTH_BYTES = 1 << 20
"""Folding may add this much to the weights in all."""

_SKELETON_BYTES = 1024
"""Constants up to this size may be shapes, so shape inference sees their values."""

_GLANCE = 1024
"""Values of a constant that are looked at before all of them are."""

_RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
# Folding these would undo a quantization, or write out a tensor that the graph computes from a few numbers.
_NEVER_FOLDED = frozenset(("ConstantOfShape", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"))
# Their outputs can be of any size, whatever the size of their inputs.
_GROWING = frozenset(("Expand", "Gather", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"))

# The rules that drop zero biases are left out: a bias that is zero now is a parameter that a later step may correct.
_SIMPLIFICATIONS = (
    rules.add_0_rule,
    rules.cast_cast_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.div_by_1_rule,
    rules.dropout_inference_rule,
    rules.dropout_zero_rule,
    rules.flatten_to_reshape_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.fuse_pad_into_conv_rule,
    rules.materialize_reshape_shape_rule,
    rules.max_max_rule,
    rules.max_min_rule,
    rules.min_max_rule,
    rules.min_min_rule,
    rules.mul_by_1_rule,
    rules.no_op_cast_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_expand_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.no_op_transpose_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.sub_0_rule,
    rules.successive_clip_relu_rule,
    rules.successive_clip_rule,
    rules.successive_relu_clip_rule,
    rules.successive_relu_rule,
    rules.transpose_transpose_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.unsqueeze_unsqueeze_rule,
)


@dataclass(frozen=True, slots=True)
class Normalized:
    """A normalized graph, and what could not be done or was undone, in sentences for the report."""

    model: ir.Model
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Rewrite:
    name: str
    apply: Callable[[ir.Model], None]
    optional: bool = False
    """Whether doing without it is not worth a remark."""
    opset: int | None = None
    """The opset that it leads to; graphs that are there already do not need it."""
    needed: Callable[[ir.Model], bool] | None = None
    """Whether a graph needs it; None where only doing it tells."""


def normalize(model: ir.Model) -> ir.Model:
    """Return the normalized form of `model`, which is not changed. Idempotent, and the same bytes for the same graph.

    Raises:
        ModelError: ONNX Runtime does not load `model`.
    """
    return normalize_with_remarks(model).model


@spare_what_exists()
def normalize_with_remarks(model: ir.Model) -> Normalized:
    """Return the normalized form of `model` and what a user should know about it.

    Raises:
        ModelError: ONNX Runtime does not load `model`.
    """
    with quiet():
        model, renamed = _with_one_node_a_name(model)
        proof = _Proof.of(model)
        if proof is None:
            remarks = [_unprovable(model)]
            result = model.clone()
            _tidy(result)
        else:
            # Taken before: a rewrite that changes an array which the clone shares changes the source with it.
            source = digest_graph(model)
            result, remarks, digest = _apply(model, None, source)
            # The graph of one hash needs no run to be the same graph: a file that was cleaned before.
            if digest != source and proof.difference(result):
                result, remarks, _ = _apply(model, proof, source)
        check_graph(result, "the normalized graph")
    opset = _opset(result)
    if opset < TARGET_OPSET:
        remarks.append(f"The graph stays at opset {opset}: it could not be upgraded to {TARGET_OPSET} exactly.")
    if staying := what_stays(result):
        remarks.append(staying)
    return Normalized(result, (*renamed, *remarks))


def _with_one_node_a_name(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """Return the graph and a remark where nodes of one graph shared a name, which ONNX Runtime does not load."""
    bodies = (*model.graphs(), *model.functions.values())
    names = [Counter(node.name for node in body if node.name) for body in bodies]
    shared = sorted({name for counts in names for name, count in counts.items() if count > 1})
    if not shared:
        return model, ()
    model = model.clone()
    passes.NameFixPass()(model)
    some = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
    return model, (f"Nodes of the source shared names ({some}); each has one of its own now.",)


_Case = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]
"""Inputs, and what a graph makes of them."""


class _Proof:
    """What a graph computes on sample inputs of two sizes; where it has float16, also what it computes in float32."""

    def __init__(self, model: ir.Model, cases: Sequence[_Case]) -> None:
        self._cases = cases
        self._source = model if uses_half(model) else None
        self._wide_cases: Sequence[_Case] = ()

    @classmethod
    def of(cls, model: ir.Model) -> "_Proof | None":
        """Return the proof for `model`; None when it is too large, draws random numbers, or runs on no made inputs."""
        session = _open(model)
        if obstacle_to_running(model) or _random_node(model):
            return None
        for lengths in LENGTHS:
            cases = []
            for seed, batch in enumerate(BATCHES):
                inputs = sample_inputs(model, seed=seed, dimensions=dimensions_for(model, batch, lengths[seed]))
                try:
                    cases.append((inputs, session.run(inputs)))
                except (ModelError, DataError):
                    continue
            if cases:
                return cls(model, cases)
        return None

    def difference(self, model: ir.Model) -> str:
        """Return how `model` differs from what was proven, or an empty string.

        With float16, one value that is rounded elsewhere differs by more than the tolerance. So a form is equal, too,
        that computes the same in float32, up to half an ulp of float16: numbers that it states are in float16 still.
        Later forms are compared with what it computes.
        """
        try:
            found = _outputs(model, [inputs for inputs, _ in self._cases])
            difference = _first_difference(self._cases, found)
            if difference and self._source is not None and not self._wide_difference(self._source, model):
                self._cases = _with_outputs(self._cases, found)
                return ""
        except (ModelError, DataError) as error:
            return error.what
        return difference

    def _wide_difference(self, source: ir.Model, model: ir.Model) -> str:
        if not self._wide_cases:
            feeds = [{name: _widened(array) for name, array in inputs.items()} for inputs, _ in self._cases]
            self._wide_cases = list(zip(feeds, _outputs(with_float32(source), feeds), strict=True))
        found = _outputs(with_float32(model), [inputs for inputs, _ in self._wide_cases])
        difference = _first_difference(self._wide_cases, found, HALF_TOLERANCE)
        if not difference:
            self._wide_cases = _with_outputs(self._wide_cases, found)
        return difference


def _outputs(model: ir.Model, feeds: Sequence[dict[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
    session = _open(model)
    return [session.run(inputs) for inputs in feeds]


def _with_outputs(cases: Sequence[_Case], outputs: Sequence[dict[str, NDArray[Any]]]) -> Sequence[_Case]:
    return [(inputs, each) for (inputs, _), each in zip(cases, outputs, strict=True)]


def _first_difference(
    cases: Sequence[_Case], found: Sequence[dict[str, NDArray[Any]]], tolerance: float = RELATIVE_TOLERANCE
) -> str:
    differences = (find_difference(wanted, each, tolerance) for (_, wanted), each in zip(cases, found, strict=True))
    return next(filter(None, differences), "")


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _open(model: ir.Model) -> ReferenceSession:
    # One or two runs on small inputs take less time than bringing all weights into another order before them.
    return ReferenceSession(model, prepack=False)


def _apply(model: ir.Model, proof: _Proof | None, digest: str) -> tuple[ir.Model, list[str], str]:
    """Return `model`, which has this digest, after all rewrites, remarks on those undone, and the digest it has then.

    With a proof, each rewrite is checked by itself.
    """
    current = model
    undone: dict[str, str] = {}
    settled: dict[str, str] = {}
    # The rounds end when no rewrite changes the graph any more, which makes normalization idempotent.
    for rewrite in _ONCE + _REPEATED * _ROUNDS:
        if settled.get(rewrite.name) == digest or (rewrite.opset is not None and _opset(current) >= rewrite.opset):
            continue
        if rewrite.needed is not None and not rewrite.needed(current):
            continue
        current, reason = _attempt(rewrite, current, proof)
        before, digest = digest, digest_graph(current)
        if digest == before:
            settled[rewrite.name] = digest
        undone.pop(rewrite.name, None)
        if reason and not rewrite.optional:
            undone[rewrite.name] = reason
    return current, [f"Undone while cleaning: {name} ({reason})." for name, reason in undone.items()], digest


def _attempt(rewrite: _Rewrite, model: ir.Model, proof: _Proof | None) -> tuple[ir.Model, str]:
    """Return the graph after `rewrite`, or `model` itself and the reason why it was undone."""
    candidate = model.clone()
    try:
        rewrite.apply(candidate)
        reason = proof.difference(candidate) if proof else ""
    # The passes are other people's code and raise whatever they trip over; the graph before is intact.
    except Exception as error:  # noqa: BLE001
        reason = error.what if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
    return (model, " ".join(reason.split())[:300]) if reason else (candidate, "")


def _prepare(model: ir.Model) -> None:
    model.ir_version = max(model.ir_version or 0, _TARGET_IR_VERSION)
    if "ai.onnx" in model.opset_imports:
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    passes.RemoveInitializersFromInputsPass()(model)
    passes.InlinePass()(model)


def _opset(model: ir.Model) -> int:
    return model.opset_imports.get("", TARGET_OPSET)


def _upgrade(target: int) -> _Rewrite:
    def upgrade(model: ir.Model) -> None:
        with runtime_norms_apart(model):
            version_converter.convert_version(model, target, fallback=_opset(model) < _NATIVE_OPSET)
        # The converter leaves the graph as it is when an operator has no newer form.
        if model.opset_imports[""] < target:
            raise _cannot("an operator has no equal form there")

    return _Rewrite(f"upgrading operators to opset {target}", upgrade, opset=target)


def _infer_shapes(model: ir.Model) -> None:
    """Give values the shapes that follow from the inputs, with dimension names carried through.

    ONNX's own inference loses a named dimension at the first Reshape. With the names, most shape arithmetic that
    exporters write becomes constant.
    """
    skeleton = model.clone()
    for value in list(skeleton.graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SKELETON_BYTES and tensor.dtype != ir.DataType.STRING:
            # Inference needs the shape of a weight, and the value of small ones only.
            value.shape, value.const_value = ir.Shape(tensor.shape.numpy()), None
            value.type = ir.TensorType(tensor.dtype)
            del skeleton.graph.initializers[str(value.name)]
            skeleton.graph.inputs.append(value)
    # Not its static `infer_shapes`: that one writes a file into the working directory when it cannot finish.
    inference = _shape_inference_module().SymbolicShapeInference(
        int_max=2**31 - 1, auto_merge=False, guess_output_rank=False, verbose=0
    )
    inference._preprocess(ir.to_proto(skeleton))
    complete = False
    while inference.run_:
        complete = inference._infer_impl()
    if not complete:
        raise _cannot("not every shape follows from the inputs")
    for graph, inferred in zip(model.graphs(), ir.from_proto(inference.out_mp_).graphs(), strict=True):
        known = {value.name: value for value in _values(inferred)}
        for node in graph:
            for value in node.outputs:
                found = known.get(value.name)
                if found is not None and found.shape is not None:
                    value.shape = found.shape
                    value.type = found.type or value.type


@cache
def _shape_inference_module() -> Any:
    """Return ONNX Runtime's module for symbolic shapes without the package around it.

    `onnxruntime.tools` imports torch, which takes seconds and 200 MB, for helpers of its own; this module needs none.
    """
    path = Path(onnxruntime.__file__).parent / "tools" / "symbolic_shape_infer.py"
    spec = spec_from_file_location(f"{__name__}.symbolic_shape_infer", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"ONNX Runtime {onnxruntime.__version__} has no {path}", path=str(path))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _fold(model: ir.Model) -> None:
    before = weight_bytes(model)
    fold_constants(model, onnx_shape_inference=True, output_size_limit=_FOLDED_ELEMENTS, should_fold=_may_fold)
    _name_folded(model)
    after = weight_bytes(model)
    if after > before + _GROWTH_BYTES:
        raise _cannot(f"constants would grow from {before} to {after} bytes")


def _may_fold(node: ir.Node) -> bool | None:
    """Return False for what must not be folded, and None to leave the decision to the size of its inputs."""
    if (
        node.op_type in _NEVER_FOLDED
        or _widens_codes(node)
        or any(_is_shared_weight(value) for value in node.inputs if value is not None)
    ):
        return False
    shape = node.outputs[0].shape
    if shape is None or not shape.is_static():
        return None if node.op_type not in _GROWING else False
    constants = [value.const_value for value in node.inputs if value is not None]
    largest = max((tensor.size for tensor in constants if tensor is not None), default=0)
    return None if prod(shape.numpy()) <= max(largest, _FOLDED_ELEMENTS) else False


def _widens_codes(node: ir.Node) -> bool:
    """Return whether a node makes floats of stored codes of a few bits, as a Cast of eight-bit floats does."""
    tensor = node.inputs[0].const_value if node.op_type == "Cast" and node.inputs[0] is not None else None
    return (
        tensor is not None
        and tensor.dtype != ir.DataType.BOOL
        and tensor.dtype.is_floating_point()
        and tensor.dtype.bitwidth <= 8
    )


def _is_shared_weight(value: ir.Value) -> bool:
    """Return whether folding a use of `value` would store a weight twice and untie it, as in a tied output head."""
    tensor = value.const_value
    return (
        tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) > 1 and len(value.consumers()) > 1
    )


def _name_folded(model: ir.Model) -> None:
    """Give a constant that was computed from one weight alone the name of that weight, if it is free again."""
    taken = {str(value.name) for graph in model.graphs() for value in _values(graph)}
    for value in list(model.graph.initializers.values()):
        origins = ast.literal_eval(value.metadata_props.pop(FOLDED_FROM_KEY, "[]"))
        if len(origins) == 1 and origins[0] not in taken:
            model.graph.initializers.pop(str(value.name))
            value.name = origins[0]
            model.graph.register_initializer(value)
    for graph in model.graphs():
        for value in _values(graph):
            value.metadata_props.pop(FOLDED_FROM_KEY, None)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _simplify(model: ir.Model) -> None:
    rewriter.rewrite(model, _SIMPLIFICATIONS)


def _tidy(model: ir.Model) -> None:
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    _merge_equal_constants(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    passes.RemoveUnusedOpsetsPass()(model)
    passes.TopologicalSortPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)
    passes.ShapeInferencePass(strict_mode=False)(model)


def _merge_equal_constants(model: ir.Model) -> None:
    """Use one initializer where several hold the same tensor.

    Float tensors of one repeated value stay apart: fresh biases and scales are equal by accident, and methods that
    train or prune must be able to change each by itself.
    """
    kept: dict[tuple[object, ...], ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        if tensor.dtype.is_floating_point() and tensor.size > 1 and _repeats_one_value(tensor.numpy().reshape(-1)):
            continue
        shape = tuple(tensor.shape.numpy())
        first = kept.setdefault((tensor.dtype, shape, content_hash(tensor)), value)
        if first is not value:
            value.replace_all_uses_with(first)
            model.graph.initializers.pop(str(value.name))


def _repeats_one_value(array: NDArray[Any]) -> bool:
    # A few values tell almost every weight apart, which then need not be read.
    return bool((array[:_GLANCE] == array[0]).all()) and bool((array == array[0]).all())


def _random_node(model: ir.Model) -> str:
    """Return the name of a node whose output differs from run to run, or an empty string."""
    for node in model.graph.all_nodes():
        # The third input of Dropout is the training mode.
        if node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.inputs) > 2):
            return node.name or node.op_type
    return ""


def _unprovable(model: ir.Model) -> str:
    cause = "runs on no made-up inputs"
    if obstacle := obstacle_to_running(model):
        cause = f"is too large ({obstacle})"
    elif node := _random_node(model):
        cause = f"draws random numbers (node `{node}`)"
    return f"The graph {cause}, so nothing but its names, duplicates and unused parts was cleaned."


def _cannot(reason: str) -> ModelError:
    return ModelError(reason, expected="an exact rewrite", why="It would change the model.", fix="It is undone.")


_ONCE = (
    _Rewrite("inlining functions", _prepare),
    _upgrade(_NATIVE_OPSET),
    _upgrade(TARGET_OPSET),
)
_REPEATED = (
    _Rewrite("inferring shapes", _infer_shapes, optional=True),
    *(
        _Rewrite(f"writing {kind} as ONNX does", partial(unfuse, kind=kind), needed=partial(has_fused, kind=kind))
        for kind in KINDS
    ),
    _Rewrite("folding constants", _fold),
    _Rewrite("simplifying patterns", _simplify),
    _Rewrite("removing duplicates and unused parts", _tidy),
)
