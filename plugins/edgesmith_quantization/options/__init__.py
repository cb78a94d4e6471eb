"""Options of the quantization methods, one record per method. Imports neither onnx nor numpy."""
