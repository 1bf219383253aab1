"""Many sizes of one model from one calibration: the curve before the choice."""

from corp_onnx.sweep.plan import SweepSettings
from corp_onnx.sweep.sweep import sweep_model
from corp_onnx.sweep.values import Sweep, SweepPoint

__all__ = ["Sweep", "SweepPoint", "SweepSettings", "sweep_model"]
