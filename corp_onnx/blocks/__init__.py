"""Finds the prunable units of a graph by data flow, and says what it skipped and why."""

from corp_onnx.blocks.find import find_blocks, require_blocks
from corp_onnx.blocks.units import (
    AttentionOutput,
    AttentionUnit,
    Block,
    Blocks,
    Linear,
    MlpUnit,
    Operand,
    Residual,
    Skip,
    Slot,
    UpProjection,
    WidthSpelling,
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
    "Slot",
    "UpProjection",
    "WidthSpelling",
    "find_blocks",
    "require_blocks",
]
