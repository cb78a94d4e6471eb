"""What the methods of this family say when they find nothing to do or the target has no form for their weights."""

from edgesmith.errors import StepError
from edgesmith.host.context import Notes

_SHOWN = 3
"""How many nodes are named; the notes have them all."""


def first_reasons(notes: Notes, otherwise: str) -> str:
    """Return why the first nodes were left alone, or `otherwise` where the graph has none of the kind."""
    return "; ".join(f"{name}: {reason}" for name, reason in list(notes.skipped.items())[:_SHOWN]) or otherwise


def no_form(method: str, problem: str) -> StepError:
    """Return the error of a method whose target takes no weights of this form."""
    return StepError(
        f"{method} cannot write this form: {problem}",
        expected="bits, blocks and symmetry that the target takes",
        why="the target would refuse the graph, or compute something else",
        fix="change the options as said, or choose another target",
    )


def nothing_to_do(method: str, reasons: str, *, expected: str, options: str) -> StepError:
    """Return the error of a method that finds nothing to quantize; `options` names those that limit it."""
    return StepError(
        f"{method} found nothing to quantize ({reasons})",
        expected=expected,
        why="the step would change nothing",
        fix=f"remove the step from the recipe, or widen the options {options}",
    )
