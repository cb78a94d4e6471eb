"""How fast the command line answers: `--help`, `methods` and `targets`, each in fresh processes, taken in turns.

Goal: under 0.4 s. An empty Python process is timed in the same rounds, since it is the part nobody can save.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROUNDS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "edgesmith --help": ["-m", "edgesmith", "--help"],
    "edgesmith methods": ["-m", "edgesmith", "methods"],
    "edgesmith targets": ["-m", "edgesmith", "targets"],
}


def main() -> None:
    """Time all commands and print medians with quartiles."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    table = Table("command", "median s", "quartiles s", "runs")
    results = {}
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4)
        table.add_row(name, f"{median:.3f}", f"{low:.3f} to {high:.3f}", str(len(values)))
        results[name] = {"median_s": median, "low_s": low, "high_s": high, "runs": len(values)}
    Console().print(table)
    out = Path("build/bench/startup.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
