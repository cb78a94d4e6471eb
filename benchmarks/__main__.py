"""Run every benchmark of this folder in a process of its own. Results also go to `build/bench/*.json`."""

import subprocess
import sys
from pathlib import Path

from rich.console import Console

HELPERS = {
    "__init__",
    "__main__",
    "folding_child",
    "measuring",
    "profiles_child",
    "profiles_page",
    "quantization_table",
    "sparsity_child",
    "structure_child",
    "tokens_child",
}


def main() -> int:
    """Run all and return 1 if any of them failed."""
    console = Console()
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in HELPERS)
    failed = []
    for name in names:
        console.rule(name)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    console.print(f"Failed: {', '.join(failed)}" if failed else "All benchmarks ran.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
