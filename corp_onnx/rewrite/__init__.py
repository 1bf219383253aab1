"""Solutions -> a smaller graph: the only room that changes one, with tokens/."""

from corp_onnx.rewrite.surgery import AttentionChange, Changes, MlpChange, apply_changes

__all__ = ["AttentionChange", "Changes", "MlpChange", "apply_changes"]
