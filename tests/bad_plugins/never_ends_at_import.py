"""Never ends to import; makes the file that the environment names as NEVER_ENDING when it is there."""

import os
from pathlib import Path

Path(os.environ.get("NEVER_ENDING", os.devnull)).touch()
while True:
    pass
