"""Runs an artifact on a device and writes down what it saw. This package travels to the device alone, in one file.

It needs Python 3.10, numpy, and the runtime of the artifact: onnxruntime; or tensorrt with CUDA's runtime library.
trtexec, NVIDIA's own program around TensorRT, needs none of it and is called from the machine that asks.

    python3 worker.pyz probe ANSWER.json      # what the machine is and which runtimes it has
    python3 worker.pyz run REQUEST.json       # time and run the model as the request says
    python3 worker.pyz time REQUEST.json      # time several models in turns

Answers are files, since standard output belongs to the runtimes. Texts of the device's own tools are handed over as
they are and read on the machine that asked. Exit codes: 0 done, 1 failed, with the reason in the answer.
"""
