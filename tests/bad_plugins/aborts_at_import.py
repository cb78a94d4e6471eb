"""Aborts at import, as native code does."""

import os

os.abort()
