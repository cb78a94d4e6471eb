"""The small compile of the pipeline's tests, for isolated steps too."""

from tests.pipeline.conftest import job

__all__ = ["job"]
