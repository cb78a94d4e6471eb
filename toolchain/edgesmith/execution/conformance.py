"""Conformance of TorchGraph with ONNX: the node tests that ship inside the `onnx` package, and the table they give.

Run `python -m edgesmith.execution.conformance` to write docs/operators.md.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgesmith.errors import ModelError, UnsupportedOperatorError
from edgesmith.execution.dtypes import from_array, to_array
from edgesmith.execution.operators import rows
from edgesmith.execution.torch_graph import TorchGraph


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A test compared less strictly than the suite asks, and why."""

    rtol: float
    atol: float
    reason: str


_TWO_HALF_UNITS = Tolerance(2**-9, 1e-7, "float16: expected values are rounded after every step, ours once")
_CANCELLED = Tolerance(1e-3, 2e-6, "float32: expected values are rounding noise where they should be zero")
EXCEPTIONS = {
    "test_attention_4d_fp16": _TWO_HALF_UNITS,
    "test_attention_4d_causal_fp16": _TWO_HALF_UNITS,
    "test_attention_4d_causal_fp16_expanded": _TWO_HALF_UNITS,
    "test_dft_inverse": _CANCELLED,
    "test_dft_inverse_opset19": _CANCELLED,
}
"""The only tests that are not compared at the suite's own tolerance."""


class Outcome(StrEnum):
    """What became of one test."""

    PASSED = "passed"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Result:
    """One test of the ONNX suite."""

    test: str
    operator: str
    """The operator that the test is about, with its domain unless that is ONNX itself."""
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One operator of the table."""

    operator: str
    passed: int
    refused: int
    failed: int
    reason: str
    """Why tests were refused: the first reason met."""


def collect() -> list[Any]:
    """Return the node tests of the installed `onnx` package and its small whole models."""
    from onnx.backend.test.case.model import collect_testcases as collect_models
    from onnx.backend.test.case.node import collect_testcases as collect_nodes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [*collect_nodes(None), *(case for case in collect_models() if case.model is not None)]


def operator_of(case: Any, cases: Iterable[Any] = ()) -> str:
    """Return the operator that a test is about. A test of an expanded body belongs to the operator expanded."""
    base = case.name.partition("_expanded")[0]
    original = next((other for other in cases if other.name == base), case)
    node = original.model.graph.node[-1 if original is case else 0]
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else str(node.op_type)


def run_case(case: Any, operator: str) -> Result:
    """Return the result of one test: run in TorchGraph, compared with the expected outputs at the test's tolerance."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = TorchGraph(ir.from_proto(case.model))
            for inputs, outputs in case.data_sets:
                problem = _compare(case, _run(graph, case, inputs), outputs)
                if problem:
                    return Result(case.name, operator, Outcome.FAILED, problem)
    except UnsupportedOperatorError as error:
        return Result(case.name, operator, Outcome.REFUSED, error.what)
    except ModelError as error:
        return Result(case.name, operator, Outcome.FAILED, error.what)
    return Result(case.name, operator, Outcome.PASSED)


def run_all() -> list[Result]:
    """Return the results of all tests. Takes about half a minute on one core."""
    cases = collect()
    named = {case.name: case for case in cases}
    with torch.no_grad():
        return [
            run_case(case, operator_of(case, [named[base]] if base in named else [])) for case, base in _bases(cases)
        ]


def _bases(cases: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    for case in cases:
        yield case, case.name.partition("_expanded")[0]


def table(results: Iterable[Result]) -> list[Row]:
    """Return one row per operator, sorted by name."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.operator, []).append(result)
    return [
        Row(
            operator=operator,
            passed=sum(result.outcome is Outcome.PASSED for result in group),
            refused=sum(result.outcome is Outcome.REFUSED for result in group),
            failed=sum(result.outcome is Outcome.FAILED for result in group),
            reason=next((result.reason for result in group if result.outcome is Outcome.REFUSED), ""),
        )
        for operator, group in sorted(grouped.items())
    ]


def _run(graph: TorchGraph, case: Any, inputs: Sequence[Any]) -> list[Any]:
    names = [value.name for value in case.model.graph.input]
    feeds = {name: _to_torch(value) for name, value in zip(names, inputs, strict=False)}
    feeds |= dict.fromkeys(names[len(inputs) :])
    return list(graph(feeds).values())


def _to_torch(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [_to_torch(item) for item in value]
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        raise UnsupportedOperatorError(
            "strings cannot be held in torch",
            expected="tensors of numbers",
            why="TorchGraph computes with torch tensors",
            fix="run the graph with ReferenceSession",
        )
    return from_array(array)


def _compare(case: Any, found: Sequence[Any], expected: Sequence[Any]) -> str:
    """Return what is wrong with the outputs, or an empty string."""
    tolerance = EXCEPTIONS.get(case.name, case)
    for name, value, want in zip((v.name for v in case.model.graph.output), found, expected, strict=True):
        problem = _difference(value, want, tolerance.rtol, tolerance.atol)
        if problem:
            return f"output {name!r}: {problem}"
    return ""


def _difference(found: Any, expected: Any, rtol: float, atol: float) -> str:
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return "a sequence of another length"
        return next(filter(None, (_difference(a, b, rtol, atol) for a, b in zip(found, expected, strict=True))), "")
    if expected is None or found is None:
        return "" if expected is None and found is None else "present instead of absent, or absent instead of present"
    if isinstance(expected, onnx.TensorProto):
        expected = onnx.numpy_helper.to_array(expected)
    have, want = to_array(found), np.asarray(expected)
    if have.shape != want.shape:
        return f"shape {have.shape} instead of {want.shape}"
    if not _same_type(have, want):
        return f"type {have.dtype} instead of {want.dtype}"
    # The suite's own rule for bfloat16: two units in the last place.
    rtol = max(rtol, 2**-6) if want.dtype.name == "bfloat16" else rtol
    have, want = _plain(have), _plain(want)
    if not np.allclose(have, want, rtol=rtol, atol=atol, equal_nan=True):
        return f"differs by up to {np.nanmax(np.abs(have - want)):.3g}"
    return ""


def _same_type(have: NDArray[Any], want: NDArray[Any]) -> bool:
    # Types below eight bits are held in wider ones.
    narrow = ir.DataType.from_numpy(want.dtype).bitwidth < 8
    return narrow or have.dtype == want.dtype


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.dtype.kind == "c" else array.astype(np.float64)


def render(results: Sequence[Result]) -> str:
    """Return docs/operators.md."""
    counts = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    tested = {row.operator: row for row in table(results)}
    known: dict[str, int] = {}
    for entry in rows():
        name = f"{entry.domain}.{entry.name}" if entry.domain else entry.name
        known.setdefault(name, entry.since)
    lines = [
        "# Operators that TorchGraph runs",
        "",
        "TorchGraph runs an ONNX graph in torch, with gradients. This table is written by",
        "`python -m edgesmith.execution.conformance` from the node tests inside the `onnx` package",
        f"(version {onnx.__version__}): {counts[Outcome.PASSED]} passed, {counts[Outcome.REFUSED]} refused",
        f"with an error that names the operator, {counts[Outcome.FAILED]} failed.",
        "",
        '*Since* is the first opset version with the meaning that is implemented; "body" means that the operator is',
        "run through the definition that ONNX gives for it. Operators that are not listed are refused.",
        "",
        "Compared less strictly than the suite asks:",
        "",
        *(
            f"- {name}: rtol {entry.rtol:.3g}, atol {entry.atol:.3g}. {entry.reason}."
            for name, entry in EXCEPTIONS.items()
        ),
        "",
        "| operator | since | passed | refused | why refused |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in sorted({*known, *tested}):
        row = tested.get(name, Row(name, 0, 0, 0, ""))
        since = str(known[name]) if name in known else "body" if row.passed else "-"
        lines.append(f"| {name} | {since} | {row.passed} | {row.refused} | {_short(row.reason)} |")
    return "\n".join(lines) + "\n"


def _short(reason: str) -> str:
    head, _, tail = reason.partition("cannot be run with gradients")
    return (tail.lstrip(": ") or (head.partition(" at node")[0])).replace("|", "/")


def main(path: Path = Path("docs/operators.md")) -> int:
    """Write the table. Returns 1 if a test failed."""
    results = run_all()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(results), encoding="utf-8")
    return int(any(result.outcome is Outcome.FAILED for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
