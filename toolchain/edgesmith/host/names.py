"""Helps people who mistyped a name."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that offers the nearest known name, or lists what there is."""
    choices = sorted(set(known))
    nearest = get_close_matches(name, choices, n=1, cutoff=0.6)
    if nearest:
        return f"Did you mean `{nearest[0]}`?"
    if not choices:
        return "There are none."
    return f"Known are: {', '.join(choices)}."
