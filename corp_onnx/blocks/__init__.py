"""Finds the prunable units of a graph by data flow, and says what it skipped and why."""

from corp_onnx.blocks.find import find_blocks, require_blocks
from corp_onnx.blocks.found import (
    AttentionOutput,
    AttentionUnit,
    Block,
    Blocks,
    Linear,
    MlpUnit,
    Operand,
    Residual,
    Skip,
    UpProjection,
)

__all__ = [
    "AttentionOutput",
    "AttentionUnit",
    "Block",
    "Blocks",
    "Linear",
    "MlpUnit",
    "Operand",
    "Residual",
    "Skip",
    "UpProjection",
    "find_blocks",
    "require_blocks",
]
