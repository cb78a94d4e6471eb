"""Shows a value that somebody else wrote, in an error."""

import reprlib

_LIMIT = 80
_SHOWN = reprlib.Repr()
# A list of a list of ... of one list is small in memory and endless in print. Depth bounds the work, not only the text.
_SHOWN.maxlevel = 3
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = _LIMIT


def brief(value: object) -> str:
    """Return a representation of at most 80 characters, in bounded time whatever `value` holds."""
    try:
        text = _SHOWN.repr(value)
    except ValueError:
        # Python refuses to print integers of thousands of digits.
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."
