"""Rules over graphs for phones, and over what ONNX Runtime wrote for itself, one a file.

Each has `find(model, dialect)`, which yields findings.
"""
