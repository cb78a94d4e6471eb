"""The command `edgesmith`, also as `python -m edgesmith`. Imports little, so that Ctrl-C is one line from the start."""

import sys

_EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the command line and return its exit code; see `edgesmith.cli.main`."""
    try:
        from edgesmith.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Nothing was begun.\n")
        return _EXIT_INTERRUPTED
    return run()


if __name__ == "__main__":
    sys.exit(main())
