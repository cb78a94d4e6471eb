"""Options of the folding methods. Imports neither onnx, numpy nor torch."""
