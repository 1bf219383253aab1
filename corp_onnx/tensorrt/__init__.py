"""ONNX -> a TensorRT engine for this machine, by the Python library or by trtexec."""
