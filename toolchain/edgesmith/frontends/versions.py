"""Versions of the libraries that a graph went through."""

from importlib.metadata import PackageNotFoundError, version


def library_versions(*names: str) -> dict[str, str]:
    """Return the installed versions of distributions by name; those that are not installed are left out."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
