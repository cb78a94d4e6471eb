"""The option that all quantizers share: which places of weights they must leave alone."""

from pydantic import Field

from edgesmith.host.selection import Selection
from edgesmith.protection import Choice


class ProtectedSelection(Selection):
    """Which nodes a quantizer may touch, and which places of their weights stay in float."""

    protect: Choice = Field(
        default=None,
        description="Places of weights that stay in float: units, those of analyse-units in the same recipe, or a file "
        "with a protection.",
    )
