"""Fewer tokens and static attention: accuracy against measured images per second, on ViTs that really classify.

All rows start from the same graph and run in ONNX Runtime, in float32 and batches of one size. Latencies are medians of
shuffled turns, as ratios to the dense model within a turn. Rows in which chance plays a part, by their samples or their
pairs, are run with several seeds. Training-free and trained rows have tables of their own; those trained have all seen
the same calibration images, and no row has seen the test images.

Run `python -m benchmarks.tokens`, with `--case`, `--only`, `--evaluation` and `--turns` for parts; rows of runs with
the same images and seeds gather in one file in build/bench/tokens, and in one table.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import ChildError, call_child, quartiles, spread
from benchmarks.models import fashion_small, fashion_vit_s14
from benchmarks.models.case import Case, MissingDataError

OUT = Path("build/bench/tokens")
CHILD = "benchmarks.tokens_child"
CASES = {"fashion_small": fashion_small, "fashion_vit_s14": fashion_vit_s14}
BATCHES = {"fashion_small": 64, "fashion_vit_s14": 8}
SEEDS, SAMPLES, TURNS = 3, 128, 15
READS_SAMPLES = frozenset({"aggregate-tokens", "static-attention", "remove-blocks"})
"""Methods that read fewer samples than there are unless told; here all read the same."""

Steps = tuple[tuple[str, Mapping[str, Any]], ...]


@dataclass(frozen=True)
class Plan:
    """What is done to the dense model."""

    steps: Steps
    drawn: bool = False
    """Whether the result depends on the seed or on which calibration samples there are."""
    trained: bool = False


def merge(r: int, **options: Any) -> Plan:
    """Merge r tokens in each block."""
    return Plan((("merge-tokens", {"r": r, **options}),), drawn="score" in options)


def aggregate(form: str, keep: float, **options: Any) -> Plan:
    """Aggregate tokens at one and two thirds of the depth."""
    step = ("aggregate-tokens", {"form": form, "keep": keep, **options})
    return Plan((step,), drawn=form != "pool", trained=form == "learned")


def static(count: int, **options: Any) -> Plan:
    """Give some blocks static maps."""
    settings = {"choose": "greedy", "count": count, "max_error": None, **options}
    return Plan((("static-attention", settings),), drawn=True, trained="epochs" in options)


def together(*plans: Plan, **changes: Any) -> Plan:
    """Do one after another."""
    steps = tuple(step for plan in plans for step in plan.steps)
    return Plan(steps, any(plan.drawn for plan in plans), changes.get("trained", any(plan.trained for plan in plans)))


def recovered(plan: Plan, minutes: float) -> Plan:
    """Train all weights afterwards, for so many minutes, to answer as the dense model does."""
    step = ("recover", {"minutes": minutes, "epochs": 100.0, "labels_weight": 0.0})
    return Plan((*plan.steps, step), drawn=True, trained=True)


def plans(case: str, minutes: float, samples: int) -> dict[str, Plan]:
    """Return the rows of a case."""
    return {name: reading(plan, samples) for name, plan in _plans(case, minutes).items()}


def reading(plan: Plan, samples: int) -> Plan:
    """Let each step read so many samples."""
    limit = {"samples": samples}
    steps = [(name, {**options, **limit} if name in READS_SAMPLES else options) for name, options in plan.steps]
    return replace(plan, steps=tuple(steps))


def _plans(case: str, minutes: float) -> dict[str, Plan]:
    small = case == "fashion_small"
    depth, amounts, some = (4, (1, 2, 3), 2) if small else (12, (8, 12, 16, 20, 24), 16)
    later = (0,) * (depth // 4)
    found = {"dense": Plan(())}
    for r in amounts:
        found[f"merge, r = {r}"] = merge(r)
        found[f"random pairs, r = {r}"] = merge(r, score="random")
    for keep in (0.5, 0.25):
        for form in ("pool", "cluster", "attention-guided", "random"):
            found[f"{form}, keep {keep}"] = aggregate(form, keep)
    for count in (1, depth // 4, depth // 2):
        found[f"static, {count} blocks"] = static(count)
    found[f"static mean, first {depth // 4}"] = static(depth // 4, choose="first", form="mean")
    counts = (*later, *(some,) * (depth - len(later)))
    after = Plan((("merge-tokens", {"counts": counts}),))
    found[f"merge, r = {some} behind block {len(later)}"] = after
    found[f"merge behind and static up to block {len(later)}"] = together(after, static(len(later), choose="first"))
    found["pool, keep 0.5, and static"] = together(aggregate("pool", 0.5), static(depth // 4))
    found[f"{depth // 4} blocks less"] = Plan((("remove-blocks", {"count": depth // 4}),), drawn=True)
    found["learned, keep 0.5"] = aggregate("learned", 0.5, minutes=minutes)
    found[f"static trained, {depth // 4} blocks"] = static(depth // 4, epochs=3.0, minutes=minutes)
    merged = (f"merge, r = {r}" for r in amounts[-2:])
    for name in (*merged, "pool, keep 0.25", f"{depth // 4} blocks less"):
        found[f"{name}, then recover"] = recovered(found[name], minutes)
    return found


@dataclass
class Session:
    """Runs the rows of one case and keeps what it saw."""

    case: Case
    arguments: argparse.Namespace
    console: Console
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Images per run."""
        return BATCHES[self.case.name]

    def run(self) -> None:
        """Run every row that is asked for, then time all of them in turns, then print."""
        folder = OUT / self.case.name
        folder.mkdir(parents=True, exist_ok=True)
        given = self.arguments
        settings = f"{given.evaluation or 'all'}-images-{given.samples}-samples-{given.seeds}-seeds"
        results = OUT / f"{self.case.name}-{settings}-{given.minutes:g}-minutes.json"
        if results.exists():
            self.rows = json.loads(results.read_text())
        chosen = plans(self.case.name, given.minutes, given.samples)
        only = given.only or list(chosen)
        wanted = {name: plan for name, plan in chosen.items() if name in ("dense", *only)}
        files = {}
        for number, (name, plan) in enumerate(wanted.items()):
            file = folder / f"{number}.onnx"
            try:
                self.rows[name] = self._reduced(plan, file)
            except ChildError as error:
                self.console.print(f"{name} is left out: {error}")
                self.rows.pop(name, None)
                continue
            files[name] = str(file)
            self.console.print(f"{name}: {', '.join(f'{value:.2f}' for value in self.rows[name]['accuracy'])}")
            results.write_text(json.dumps(self.rows, indent=2))
        self._time(files)
        results.write_text(json.dumps(self.rows, indent=2))
        for each in folder.glob("*.onnx*"):
            each.unlink()
        for trained in (False, True):
            self._show(trained)

    def _reduced(self, plan: Plan, file: Path) -> dict[str, Any]:
        """Return accuracy and cost of one row; the file holds the model of the first seed."""
        row: dict[str, Any] = {"trained": plan.trained, "images": self.arguments.evaluation, "accuracy": [], "runs": []}
        for seed in reversed(range(self.arguments.seeds if plan.drawn else 1)):
            _, run = call_child(
                CHILD,
                "reduce",
                model=str(self.case.model),
                data=str(self.case.calibration),
                steps=plan.steps,
                seed=seed,
                samples=self.arguments.samples,
                file=str(file),
            )
            row["runs"].append(run)
            row["accuracy"].append(self._accuracy(file))
        return row

    def _accuracy(self, model: Path) -> float:
        request = {"data": str(self.case.evaluation), "samples": self.arguments.evaluation, "batch": self.batch}
        _, found = call_child(CHILD, "accuracy", model=str(model), **request)
        return float(found["accuracy_percent"])

    def _time(self, files: Mapping[str, str]) -> None:
        request = {"data": str(self.case.evaluation), "batch": self.batch, "turns": self.arguments.turns, "seed": 0}
        _, found = call_child(CHILD, "throughput", models=files, cpu_time=self.arguments.cpu_time, **request)
        dense = found["seconds"]["dense"]
        for name in files:
            seconds = found["seconds"][name]
            row = self.rows[name]
            row["speedup"] = quartiles([a / b for a, b in zip(dense, seconds, strict=True)])
            row["images_per_second"] = self.batch / found["medians"][name]

    def _show(self, trained: bool) -> None:
        """Print one table, fastest rows last."""
        columns = ("accuracy, %", "of seeds", "test images", "images/s", "times as fast", "MACs", "s", "peak MiB")
        kind = "trained" if trained else "without training"
        table = Table("", *columns, title=f"{self.case.name}, {kind}, batches of {self.batch}")
        rows = [(name, row) for name, row in self.rows.items() if "speedup" in row]
        rows = [(name, row) for name, row in rows if row["trained"] == trained or name == "dense"]
        # Runs differ in how busy the machine was, so the rate is the dense one of the last run times the ratio.
        dense = self.rows["dense"]["images_per_second"] if rows else 0.0
        for name, row in sorted(rows, key=lambda each: each[1]["speedup"]["median"]):
            values, runs = row["accuracy"], row["runs"]
            cells = [f"{mean(values):.2f}", f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else ""]
            cells += [str(row["images"] or "all"), f"{dense * row['speedup']['median']:.1f}", spread(row["speedup"])]
            cells += [f"{runs[-1]['macs'] / 1e6:,.1f} M", f"{mean(run['seconds'] for run in runs):.0f}"]
            cells += [f"{max(run['peak_bytes'] for run in runs) / 2**20:.0f}"]
            table.add_row(name, *cells)
        if len(rows) > 1:
            self.console.print(table)


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="repeat for several; default: all")
    parser.add_argument("--only", action="append", help="run only the row of this name; repeat for several")
    parser.add_argument("--list", action="store_true", help="print the names of all rows and end")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="calibration images, drawn for each seed, of 256")
    parser.add_argument("--evaluation", type=int, default=None, help="test images; default: all of the case")
    parser.add_argument("--turns", type=int, default=TURNS, help="timed turns")
    parser.add_argument(
        "--cpu-time", action="store_true", help="time by the processor's clock, on a machine that is busy"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="longest time of each training")
    arguments, console = parser.parse_args(), Console(width=140)
    for name in arguments.case or CASES:
        if arguments.list:
            console.print("\n".join(f"{name}: {each}" for each in plans(name, arguments.minutes, arguments.samples)))
            continue
        try:
            Session(CASES[name](), arguments, console).run()
        except MissingDataError as error:
            console.print(f"{name} is left out. {error}")


if __name__ == "__main__":
    main()
