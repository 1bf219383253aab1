"""Whether a converted file is what was asked for: its signature, its answers, and what is said where it is not."""

from __future__ import annotations

from pathlib import Path

import onnx

from corp_onnx.checks.verify import require_passed
from corp_onnx.graph import Graph
from corp_onnx.graph.operators import CHOOSERS
from corp_onnx.precision.conversion import Target
from corp_onnx.results import CheckResult
from corp_onnx.run.comparison import Comparison

TOLERANCES = {"fp16": 2e-2, "int8-dynamic": 0.5, "int8-static": 0.5}
"""Accepted difference relative to the largest answer. Float16 keeps 11 bits of every number, so twelve blocks stay
within 2 %. 8 bits move single answers by tens of percent on noise and classes hardly at all (see the agreement): the
bound only tells a quantised model from a broken one."""

CHOOSING_TOLERANCE = 0.5
"""The same of a graph that chooses, as one whose tokens merge: rounding turns a choice between near-equals, and on
noise all tokens are. On photographs the agreement is what to look at."""


def check_signature(graph: Graph, proto: onnx.ModelProto, io: str) -> CheckResult:
    """Inputs and outputs: names and dimensions of the source, and the element types that were asked for.

    Of an output whose type the source does not say, only the name can be that of the source.

    Args:
        io: type of the float ones.
    """
    before = [*graph.model.proto.graph.input, *graph.model.proto.graph.output]
    after = [*proto.graph.input, *proto.graph.output]
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16}
    wanted = onnx.TensorProto.FLOAT if io == "float32" else onnx.TensorProto.FLOAT16
    same = [a.name for a in after] == [b.name for b in before] and all(
        a.type.tensor_type.shape == b.type.tensor_type.shape
        and a.type.tensor_type.elem_type
        == (wanted if b.type.tensor_type.elem_type in floats else b.type.tensor_type.elem_type)
        for a, b in zip(after, before, strict=True)
        if b.HasField("type")
    )
    return CheckResult("signature", same, None, None, f"names and dimensions of the source, in {io}")


def judge_answers(comparison: Comparison, target: Target, graph: Graph) -> CheckResult:
    """How far the answers may be from the source's."""
    chooses = any(node.op in CHOOSERS for node in graph.nodes)
    tolerance = max(TOLERANCES[target], CHOOSING_TOLERANCE if chooses else 0.0)
    found = comparison.max_difference
    detail = f"largest difference from the source on {comparison.data}, relative to its largest answer"
    return CheckResult("answers", bool(found <= tolerance), found, tolerance, detail)


def require_converted(checks: list[CheckResult], output: Path) -> None:
    """Refuse a file that failed a check, with what else may do.

    Raises:
        CheckFailedError: one of them failed.
    """
    advice = (
        f"Nothing was written to {output}; the source is as it was, and another precision, or --activations uint8 with "
        "static integers, may do."
    )
    require_passed(checks, "converted", advice)
