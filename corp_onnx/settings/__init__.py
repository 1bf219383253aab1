"""What a person can choose, as values: they are stored in the pruned file and in the report.

A field that an option of the command line sets carries its help in its metadata (`option`), so that the command line is
derived from what is here (cli/options.py).
"""

from corp_onnx.settings.method import BEST, DEFAULT_RIDGE, METHODS, PAPER, Method, Rank, TokenMetricKind
from corp_onnx.settings.option import option
from corp_onnx.settings.pruning import CONFIDENCE, Preprocessing, PruneSettings, TaskChoice, require_task
from corp_onnx.settings.widths import (
    DEFAULT_AGREEMENT,
    DEFAULT_SIMILARITY,
    DEFAULT_THRESHOLD,
    Budget,
    CostKind,
    Fractions,
    Threshold,
    WidthRule,
)

__all__ = [
    "BEST",
    "CONFIDENCE",
    "DEFAULT_AGREEMENT",
    "DEFAULT_RIDGE",
    "DEFAULT_SIMILARITY",
    "DEFAULT_THRESHOLD",
    "METHODS",
    "PAPER",
    "Budget",
    "CostKind",
    "Fractions",
    "Method",
    "Preprocessing",
    "PruneSettings",
    "Rank",
    "TaskChoice",
    "Threshold",
    "TokenMetricKind",
    "WidthRule",
    "option",
    "require_task",
]
