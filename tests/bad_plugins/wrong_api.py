"""Is written for a plugin contract that does not exist yet."""

EDGESMITH_API = 99
