"""Which code computes. Results are kept under its version, and code that is being written changes without one."""

import importlib.metadata
import importlib.util
import json
from functools import cache
from hashlib import sha256
from pathlib import Path

from edgesmith.files import hash_file

OWN_DISTRIBUTION = "edgesmith"


@cache
def own_version() -> str:
    """Return the version of Edgesmith, followed by a hash of its Python files where it is installed as editable."""
    try:
        distribution = importlib.metadata.distribution(OWN_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # a folder on the path, without its metadata
        return content("edgesmith", "edgesmith_calibration")
    if not is_editable(distribution):
        return distribution.version
    packages = {entry.module.partition(".")[0] for entry in distribution.entry_points}
    return distribution.version + content(*sorted(packages), "edgesmith_calibration")


def is_editable(distribution: importlib.metadata.Distribution) -> bool:
    """Whether what is imported is the author's own folder, and so may change at any time (PEP 610)."""
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        return bool(origin.get("dir_info", {}).get("editable"))
    except (OSError, ValueError, AttributeError):
        return False


def content(*packages: str) -> str:
    """Return a version suffix that follows the Python files of packages, or "" where none is found."""
    hashes = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is not None:
            folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
            files = [file for folder in folders for file in sorted(folder.rglob("*.py"))] or [Path(spec.origin or "")]
            hashes += [hash_file(file) for file in files if file.is_file()]
    return f"+{sha256(' '.join(hashes).encode()).hexdigest()[:12]}" if hashes else ""
