"""Options of the pruning methods, one record per method. Imports neither onnx nor numpy."""
