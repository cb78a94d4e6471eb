"""Qualcomm's tensor processor through the QNN provider of ONNX Runtime."""
