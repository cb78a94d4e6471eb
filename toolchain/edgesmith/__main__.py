"""`python -m edgesmith` is the command `edgesmith`."""

import sys

from edgesmith.cli import main

sys.exit(main())
