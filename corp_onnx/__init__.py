"""Make a Vision Transformer that exists only as an ONNX file smaller and faster."""

from corp_onnx._version import __version__

__all__ = ["__version__"]
