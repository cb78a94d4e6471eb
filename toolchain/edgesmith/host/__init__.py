"""The host: hook specifications, records, the registry, verdicts, and the checks around every step."""
