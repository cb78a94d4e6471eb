"""Fails at import: a package that it uses is not installed."""

import a_package_that_does_not_exist  # noqa: F401
