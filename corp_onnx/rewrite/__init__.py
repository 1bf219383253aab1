"""Solutions -> a smaller graph: the ordered list of passes, and the one entry point that runs them."""

from corp_onnx.rewrite.passes import Rewrite, plan_rewrite

__all__ = ["Rewrite", "plan_rewrite"]
