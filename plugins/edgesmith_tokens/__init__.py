"""The family for vision transformers: fewer tokens, cheaper attention. Nothing heavy is imported until one is used."""

from collections.abc import Sequence

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import MethodRecord

EDGESMITH_API = 1

METHODS: tuple[MethodRecord, ...] = ()


@hookimpl
def register_methods() -> Sequence[MethodRecord]:
    """Return the methods of this family."""
    return METHODS
