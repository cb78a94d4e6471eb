"""ExecuTorch as a target. Nothing heavy is imported until it is used."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import TargetRecord, Tier

EDGESMITH_API = 1

_PROFILES = Path(__file__).with_name("profiles")


@hookimpl
def register_targets() -> Sequence[TargetRecord]:
    """Return a target for each profile of this package."""
    return tuple(
        TargetRecord(
            name=path.stem,
            version="0.1.0",
            summary=tomllib.loads(path.read_text(encoding="utf-8"))["summary"],
            entry=f"{__name__}.target:ExecuTorch",
            # Outputs of the stages come from the numeric reference; the .pte file is run once, when it is written.
            runner="reference",
            tier=Tier.REFERENCE,
            packages=("torch>=2.8", "executorch>=1.5"),
            profile=f"{__name__}:profiles/{path.name}",
        )
        for path in sorted(_PROFILES.glob("*.toml"))
    )
