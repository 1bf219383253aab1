"""|activation x gradient| of every hidden channel, PyTorch interpreting the graph (extra: taylor)."""

from corp_onnx.gradients.taylor import EntropyGradient, collect_taylor, find_logits, find_stretch

__all__ = ["EntropyGradient", "collect_taylor", "find_logits", "find_stretch"]
