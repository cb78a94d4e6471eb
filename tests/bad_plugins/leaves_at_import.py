"""Ends the process at import, in a way that Python cannot contain."""

import os

os._exit(3)
