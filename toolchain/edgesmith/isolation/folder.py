"""Names in the folder that a run and a process of its own share. Imports nothing: processes start with it."""

REQUEST_FILE = "request.json"
BEFORE_DIRECTORY = "before"
AFTER_DIRECTORY = "after"
SOURCE_DIRECTORY = "source"
"""The model that the run started from, where the run says which."""
STACK_FILE = "stack.txt"
"""Where the process writes what it was doing when it is ended by a signal."""
