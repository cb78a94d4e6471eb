"""`edgesmith compile`: a network in, a measured artifact out."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.completion import recipe_names, target_names
from edgesmith.cli.output import show_line, write_json, write_text
from edgesmith.cli.settings import DeviceSettings, Source, device_of, isolation_of, registry_of, time_limit
from edgesmith.collector import import_spared

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact

EXAMPLE = "edgesmith compile ./my-model --target onnx-cpu --recipe int8 --data texts.csv --out artifact"


def command(  # noqa: PLR0913  Typer makes an option of each parameter
    context: typer.Context,
    source: Source,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the artifact goes.", show_default=False)],
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="NAME",
            help="Target; see `edgesmith targets`. Default: the recipe's, or onnx-cpu.",
            autocompletion=target_names,
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="FILE|NAME",
            help="A recipe file, or auto, int8, int8-dynamic or float. Default: int8.",
            autocompletion=recipe_names,
            show_default=False,
        ),
    ] = "int8",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Samples (.csv, .tsv, .txt, .jsonl, .npz or a folder of images), or a YAML data description.",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="NAME=SIZE", help="Fix an open dimension of the inputs. Repeatable."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads to run models with, on the device too. Default: all cores."),
    ] = None,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate",
            help="Run each step in a process of its own, within limits; strangers' targets, rules and metrics too.",
        ),
    ] = False,
    time_limit_seconds: Annotated[float | None, time_limit("step")] = None,
    memory_limit_mib: Annotated[
        int | None,
        typer.Option(
            "--memory-limit-mib", help="Most memory for one step; implies --isolate. Default: 90 % of what is free."
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="DEVICE",
            help="Time on a device: local, ssh://user@host[:port] or adb://serial. Times there decide what pays.",
            show_default=False,
        ),
    ] = "",
    device_settings: DeviceSettings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON.")] = False,
) -> None:
    """Compile a trained network for one target, and measure what each step gained and what it cost.

    Finished steps are kept in $EDGESMITH_STORE, or in the user's cache directory, so an interrupted run resumes.
    """
    # Checked before heavy imports, so that a mistyped name answers at once.
    from edgesmith.recipe import load_recipe, with_shapes

    device = device_of(on, device_settings or ())
    chosen = with_shapes(load_recipe(recipe), shape or ())
    isolation = isolation_of(isolate, time_limit_seconds, memory_limit_mib)
    # Before the registry, which imports plugins.
    import_spared("edgesmith.api", "edgesmith.frontends.normalize")
    registry = registry_of(context)
    from edgesmith.api import Settings, compile
    from edgesmith.cli.progress import make_progress

    with make_progress(silent=as_json) as progress:
        settings = Settings(
            threads=threads,
            registry=registry,
            isolation=isolation,
            progress=progress,
            command=_command(),
            on=on,
            device=device,
        )
        artifact = compile(source, out=out, target=target, recipe=chosen, data=data, settings=settings)
    if as_json:
        write_json({"directory": str(artifact.directory), **json.loads(artifact.ledger.model_dump_json())})
    else:
        _show(artifact)


def _show(artifact: "Artifact") -> None:
    from rich.console import Console

    from edgesmith.report.terminal import ledger_table

    Console().print(ledger_table(artifact.ledger))
    for role, text in artifact.ledger.data.items():
        write_text(f"Data      {role}: {text.partition(', sha256')[0]}")
    write_text(f"Artifact  {artifact.directory}")
    write_text(f"Report    {artifact.report}")
    if not artifact.ledger.rows[0].metric:
        show_line(f"The metric {artifact.ledger.metric} compares outputs with the source.")


def _command() -> str:
    """Return this command line, which does the same again."""
    return shlex.join(["edgesmith", *sys.argv[1:]])
