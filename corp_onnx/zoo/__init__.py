"""A timm model -> an ONNX file with its preprocessing and labels (extra: export)."""
