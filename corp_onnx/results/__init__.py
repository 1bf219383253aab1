"""What leaves the process: frozen values, one file for the verb that returns them, the rest for what several tell.

Numbers only, no arrays and no graphs; every value carries the baseline beside the figure.
"""

from corp_onnx.results.base import SCHEMA, Result, Rows, read_json, to_json, to_report
from corp_onnx.results.facts import DeadTokens, FileFacts, ModelFacts, SkipFacts, UnitFacts
from corp_onnx.results.inspection import Inspection
from corp_onnx.results.pruning import (
    Answer,
    CalibrationData,
    Disagreement,
    MergeResult,
    PruneResult,
    SpeedResult,
    TriedSize,
    UnitResult,
    UnitWidth,
)
from corp_onnx.results.running import PACKAGES, Environment, StageClock, StageTime, describe_environment
from corp_onnx.results.scores import CheckResult, HeldOut, Judged, Metric, OutputScore, Promise

__all__ = [
    "PACKAGES",
    "SCHEMA",
    "Answer",
    "CalibrationData",
    "CheckResult",
    "DeadTokens",
    "Disagreement",
    "Environment",
    "FileFacts",
    "HeldOut",
    "Inspection",
    "Judged",
    "MergeResult",
    "Metric",
    "ModelFacts",
    "OutputScore",
    "Promise",
    "PruneResult",
    "Result",
    "Rows",
    "SkipFacts",
    "SpeedResult",
    "StageClock",
    "StageTime",
    "TriedSize",
    "UnitFacts",
    "UnitResult",
    "UnitWidth",
    "describe_environment",
    "read_json",
    "to_json",
    "to_report",
]
