"""Ends the process when it is asked for its methods."""

import os

from edgesmith import hookimpl


@hookimpl
def register_methods():
    os._exit(4)
