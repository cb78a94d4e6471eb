"""One set of weights for several blocks: which blocks, and which weights."""
