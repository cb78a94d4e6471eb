"""The root of the one family of errors that Edgesmith shows to a user without a traceback."""


class EdgesmithError(Exception):
    """A refusal that a user can act on. The command line prints it and exits with code 2.

    Args:
        what: What failed, naming the file, node, shape or option concerned.
        expected: What was expected instead.
        why: Why it matters, in one sentence.
        fix: What to do next.
    """

    def __init__(self, what: str, *, expected: str, why: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n  expected: {self.expected}\n  why: {self.why}\n  next: {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only parts would be lost when an error crosses a process boundary.
        return (_rebuild, (type(self), self.what, self.expected, self.why, self.fix))


def _rebuild(kind: type[EdgesmithError], what: str, expected: str, why: str, fix: str) -> EdgesmithError:
    return kind(what, expected=expected, why=why, fix=fix)


class DataError(EdgesmithError):
    """Calibration or evaluation data cannot be used: missing, empty, of the wrong form, or not finite."""
