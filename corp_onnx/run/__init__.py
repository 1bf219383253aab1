"""The only room that runs a model, and the only one where ONNX Runtime's exceptions become sentences."""
