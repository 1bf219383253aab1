"""Finds the sites of a graph that units can be pruned from, by data flow, and says what it skipped and why."""

from corp_onnx.blocks.find import explain_nothing, find_blocks
from corp_onnx.blocks.found import Attention, Block, Blocks, Mlp, QkPair, SiteKey, Skip, VoPair
from corp_onnx.blocks.products import AttentionOutput, Linear, Operand, Residual, UpProjection

__all__ = [
    "Attention",
    "AttentionOutput",
    "Block",
    "Blocks",
    "Linear",
    "Mlp",
    "Operand",
    "QkPair",
    "Residual",
    "SiteKey",
    "Skip",
    "UpProjection",
    "VoPair",
    "explain_nothing",
    "find_blocks",
]
