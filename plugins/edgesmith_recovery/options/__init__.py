"""Options of the recovery methods. Imports neither onnx, numpy nor torch."""
