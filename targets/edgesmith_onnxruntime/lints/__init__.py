"""Rules over graphs lowered for phones, one a file: `find(model, dialect)` yields findings."""
