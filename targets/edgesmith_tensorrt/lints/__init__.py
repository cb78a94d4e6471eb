"""Rules over lowered graphs: what NVIDIA's runtime rejects, and what makes it slow. One rule per file.

Each rule is a function `(model, dialect)` that yields findings. It asks the dialect whether it has a say, so a rule
holds for every device of which it is true, a user's own profile included.
"""
