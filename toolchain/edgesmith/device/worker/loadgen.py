"""One scenario of MLPerf's load generator, where its Python module (mlcommons-loadgen) is installed."""

import importlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .archive import Facts, read_batch
from .model import WorkerModel

SUMMARY_FILE = "mlperf_log_summary.txt"


def run_scenario(model: WorkerModel, archive: Any, request: Facts, folder: Path, times: Sequence[float]) -> str:
    """Let the load generator ask for samples as its scenario says; return its summary.

    Args:
        model: The loaded model. One sample of the generator is one batch of the request.
        archive: The opened inputs.
        request: `loadgen` names the scenario; `target_qps` is the rate of Server.
        folder: Where the generator writes.
        times: Times of single runs, for what the generator wants to be told of the speed to expect.
    """
    mlperf_loadgen = importlib.import_module("mlperf_loadgen")
    batches = [read_batch(archive, index, request["inputs"]) for index in range(request["batches"])]

    def answer(queries: Any) -> None:
        for query in queries:
            model.set_inputs(batches[query.index])
            model.run()
            mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(query.id, 0, 0)])

    def nothing(*_: Any) -> None:
        """The samples are in memory already."""

    logs = mlperf_loadgen.LogSettings()
    folder = folder / "loadgen"
    folder.mkdir(exist_ok=True)
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    system = mlperf_loadgen.ConstructSUT(answer, nothing)
    samples = mlperf_loadgen.ConstructQSL(len(batches), len(batches), nothing, nothing)
    try:
        settings = _settings(mlperf_loadgen, request, statistics.median(times))
        mlperf_loadgen.StartTestWithLogSettings(system, samples, settings, logs)
    finally:
        mlperf_loadgen.DestroyQSL(samples)
        mlperf_loadgen.DestroySUT(system)
    return (folder / SUMMARY_FILE).read_text(encoding="utf-8", errors="replace")


def _settings(mlperf_loadgen: Any, request: Facts, median_ms: float) -> Any:
    settings = mlperf_loadgen.TestSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, request["loadgen"])
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(request["seconds"] * 1e3)
    settings.min_query_count = request["fewest_runs"]
    expected_ns = max(1, round(median_ms * 1e6))
    settings.single_stream_expected_latency_ns = expected_ns
    settings.multi_stream_expected_latency_ns = expected_ns * settings.multi_stream_samples_per_query
    settings.offline_expected_qps = 1e3 / median_ms
    settings.server_target_qps = request["target_qps"] or 1e3 / median_ms
    return settings
