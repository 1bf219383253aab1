"""How good models still are on images: accuracy where labels are known, and distance from a reference."""

from corp_onnx.evaluate.evaluate import evaluate_models
from corp_onnx.evaluate.scores import Evaluation, Score

__all__ = ["Evaluation", "Score", "evaluate_models"]
