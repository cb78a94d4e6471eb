"""Names that a shell offers while one types: those of installed targets, recipes and methods."""


def target_names(incomplete: str) -> list[str]:
    """Return the installed targets that begin so. Profiles are files, which the shell offers itself."""
    from edgesmith.host.loader import load_registry

    return _beginning(incomplete, [record.name for record in load_registry().targets()])


def method_names(incomplete: str) -> list[str]:
    """Return the installed methods that begin so."""
    from edgesmith.host.loader import load_registry

    return _beginning(incomplete, [record.name for record in load_registry().methods()])


def recipe_names(incomplete: str) -> list[str]:
    """Return the bundled recipes that begin so. Others are files, which the shell offers itself."""
    from edgesmith.recipe import bundled_recipes

    return _beginning(incomplete, list(bundled_recipes()))


def _beginning(incomplete: str, names: list[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
