"""Clusters of weights on a line: ours beside scikit-learn's k-means and kmeans1d, on one core.

Each makes 3 clusters of the same normal values. Rates are values per second of processor time of the thread, sorting
included; the objective is the sum of squared distances to the centres, as a ratio to ours, which is the least there is.
Peers that are not installed are left out (`pip install kmeans1d`).

    OMP_NUM_THREADS=1 python -m benchmarks.clustering
"""

import argparse
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import quartiles, spread
from edgesmith.measure.machine import describe_machine
from edgesmith_quantization.arithmetic.clustering import cluster_of, optimal_edges

OUT = Path("build/bench/clustering.json")
CLUSTERS = 3
ROW = 1024
"""Values of a row where rows are clustered by themselves."""

Owners = np.ndarray
Find = Callable[[np.ndarray], Owners]


def whole(values: np.ndarray) -> Owners:
    """Return the cluster of each value, all values together."""
    return cluster_of(values[None], optimal_edges(values[None], CLUSTERS))[0]


def rows(values: np.ndarray) -> Owners:
    """Return the cluster of each value in its row of `ROW`."""
    cut = values.reshape(-1, ROW)
    return cluster_of(cut, optimal_edges(cut, CLUSTERS)).reshape(-1)


def scikit_learn(values: np.ndarray) -> Owners:
    """Return the clusters of the peer that the published code uses, with its default initialization."""
    from sklearn.cluster import KMeans

    labels: np.ndarray = KMeans(CLUSTERS, random_state=0).fit_predict(values[:, None])
    return labels


def kmeans1d(values: np.ndarray) -> Owners:
    """Return the clusters of an exact peer (SMAWK on sorted values)."""
    import kmeans1d as peer

    return np.asarray(peer.cluster(values, CLUSTERS).clusters)


def objective(values: np.ndarray, owners: Owners) -> float:
    """Return the sum of squared distances to the centres."""
    wide = values.astype(np.float64)
    return sum(float(np.square(wide[owners == each] - wide[owners == each].mean()).sum()) for each in np.unique(owners))


def main() -> None:
    """Time all that are installed, print a table, and write `build/bench/clustering.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--values", type=int, default=20_000_000, help="Values for ours; peers get a twentieth.")
    chosen = parser.parse_args()
    peers: list[tuple[str, Find, int]] = [
        ("edgesmith, one weight", whole, chosen.values),
        (f"edgesmith, rows of {ROW}", rows, chosen.values // 20 // ROW * ROW),
        ("scikit-learn KMeans", scikit_learn, chosen.values // 20),
        ("kmeans1d", kmeans1d, chosen.values // 20),
    ]
    generator = np.random.default_rng(0)
    table = Table("", "values", "million values/s", "objective / least", title=f"{CLUSTERS} clusters, one core")
    results = {}
    for name, find, count in peers:
        if (find is scikit_learn and find_spec("sklearn") is None) or (find is kmeans1d and not find_spec("kmeans1d")):
            continue
        values = generator.normal(0, 0.02, count).astype(np.float32)
        rates = []
        for _ in range(chosen.rounds):
            started = time.process_time()
            owners = find(values)
            rates.append(count / (time.process_time() - started) / 1e6)
        ratio = None if find is rows else objective(values, owners) / objective(values, whole(values))
        results[name] = {"values": count, "million_per_second": quartiles(rates), "objective_ratio": ratio}
        table.add_row(name, f"{count:,}", spread(quartiles(rates), digits=1), "" if ratio is None else f"{ratio:.6f}")
    Console(width=120).print(table)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"machine": describe_machine(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
