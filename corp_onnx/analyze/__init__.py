"""How redundant a model is, and how a pruned one depends on its calibration: before anything is cut."""

from corp_onnx.analyze.analyze import analyze_model
from corp_onnx.analyze.values import Analysis, Study, StudyName

__all__ = ["Analysis", "Study", "StudyName", "analyze_model"]
