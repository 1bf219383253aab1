"""Every block's last product solved again on the stream that the pruned model really has."""

from corp_onnx.refit.walk import refit_changes

__all__ = ["refit_changes"]
