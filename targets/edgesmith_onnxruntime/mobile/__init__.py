"""What ships to phones beside `model.onnx`: ORT format, operators of a reduced build, usability, code that loads it."""
