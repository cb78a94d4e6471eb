"""What is in a graph: structure, couplings, cost, and helpers to edit it. Pure functions of an ONNX graph."""
