"""The rules on single operators: fed with fewer tokens where a rule says they stand, an operator gives just those."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.graph import Graph, load_model
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.tapped import open_tapped
from corp_onnx.tokens.axis import TokenAxis, trace_token_axis

B, N, D, H = 2, 7, 6, 3
KEPT = [0, 3]
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """One operator: shapes of what it reads, which of its output's axes counts tokens, and where they stand before."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    axis: int
    sources: tuple[tuple[int, int], ...] | None  # (input, axis), or None where tokens are mixed
    attrs: dict[str, Any] = field(default_factory=dict)
    constants: tuple[tuple[int, list[int]], ...] = ()  # (input, integers) that say how
    domain: str = ""
    opset: int = 23
    n_tokens: int = N

    def __str__(self) -> str:
        return f"{self.domain}{self.op}{self.shapes} axis {self.axis} {self.attrs or ''}"


X, HEADS = (B, N, D), (B, H, N, D)
CASES = [
    Case("Add", (X, X), 1, ((0, 1), (1, 1))),
    Case("Add", (X, (D,)), 1, ((0, 1),)),
    Case("Add", (HEADS, (1, 1, N, D)), 2, ((0, 2), (1, 2))),
    Case("Mul", (HEADS, (N, D)), 2, ((0, 2), (1, 0))),
    Case("Add", (HEADS, (B, 1, 1, D)), 2, ((0, 2),)),
    Case("Erf", (X,), 1, ((0, 1),)),
    Case("Gelu", (X,), 1, ((0, 1),)),
    *(Case(op, (X,), 1, ((0, 1),)) for op in ("Celu", "Selu", "Softsign", "ThresholdedRelu", "Floor", "Sign")),
    Case("PRelu", (X, (D,)), 1, ((0, 1),)),
    Case("PRelu", (X, (N, 1)), 1, ((0, 1), (1, 0))),  # a slope for each token
    Case("Clip", (X, ()), 1, ((0, 1),)),
    Case("CastLike", (X, (N, 1)), 1, ((0, 1),)),  # read for its type
    Case("LayerNormalization", (X, (D,), (D,)), 1, ((0, 1),)),
    Case("LayerNormalization", (X, (N, D), (N, D)), 1, None, {"axis": 1}),
    Case("Softmax", ((B, H, N, N),), 2, ((0, 2),)),
    Case("Softmax", ((B, H, N, N),), 3, None),
    Case("Softmax", ((B, H, N, N),), 2, ((0, 2),), {"axis": 3}, opset=11),
    Case("Softmax", ((B, H, N, N),), 2, None, {"axis": 2}, opset=11),
    Case("ReduceMean", (X,), 1, ((0, 1),), constants=((1, [-1]),)),
    Case("ReduceMean", (HEADS,), 1, ((0, 2),), {"keepdims": 0}, ((1, [1]),)),
    Case("ReduceMean", (X,), 1, ((0, 1),), {"axes": [-1]}, opset=17),
    Case("ReduceL1", (X,), 1, ((0, 1),), constants=((1, [-1]),)),
    Case("ReduceProd", (X,), 1, ((0, 1),), {"keepdims": 0}, ((1, [2]),)),
    Case("ReduceLogSumExp", (X,), 1, None, constants=((1, [1]),)),
    Case("MatMul", (X, (D, 5)), 1, ((0, 1),)),
    Case("MatMul", (HEADS, (B, H, D, N)), 2, ((0, 2),)),
    Case("MatMul", (HEADS, (B, H, D, N)), 3, None),
    Case("MatMul", (HEADS, (B, H, D, N)), 1, None, n_tokens=H),
    Case("FusedMatMul", (HEADS, HEADS), 2, ((0, 2),), {"transB": 1, "alpha": 0.5}, domain=MICROSOFT),
    Case("FusedMatMul", ((B, H, D, N), (*HEADS[:2], D, 4)), 2, None, {"transA": 1}, domain=MICROSOFT),
    Case("Gemm", ((N, D), (D, 5), (5,)), 0, ((0, 0),)),
    Case("Gemm", ((N, D), (D, 5), (N, 1)), 0, ((0, 0), (2, 0))),
    Case("Gemm", ((D, N), (D, 5)), 0, None, {"transA": 1}),
    Case("Transpose", ((B, N, H, D),), 2, ((0, 1),), {"perm": [0, 2, 1, 3]}),
    Case("Transpose", ((N, B),), 1, ((0, 0),)),
    Case("Slice", (X,), 1, ((0, 1),), constants=((1, [0]), (2, [4]), (3, [2]))),
    Case("Slice", (X,), 1, None, constants=((1, [0]), (2, [N]), (3, [1]))),
    Case("Split", (X,), 1, ((0, 1),), {"axis": -1, "num_outputs": 1}),
    Case("Split", (X,), 1, None, {"axis": 1, "num_outputs": 1}),
    Case("Concat", (X, X), 1, ((0, 1), (1, 1)), {"axis": -1}),
    Case("Concat", (X, X), 1, None, {"axis": 1}, n_tokens=2 * N),
    Case("Attention", (HEADS, (B, H, 9, D), (B, H, 9, D)), 2, ((0, 2),)),
    Case("Attention", (HEADS, (B, H, 9, D), (B, H, 9, D), (1, 1, N, 9)), 2, ((0, 2), (3, 2))),
    Case("Attention", (HEADS, HEADS, HEADS), 2, None, {"is_causal": 1}),
    Case("Attention", (X, X, X), 1, ((0, 1),), {"q_num_heads": H, "kv_num_heads": H}),
    Case("Attention", (HEADS, HEADS, HEADS), 1, None, n_tokens=H),
    Case("MultiHeadAttention", (X, (B, 9, D), (B, 9, D)), 1, ((0, 1),), {"num_heads": H}, domain=MICROSOFT),
    Case("MultiHeadAttention", (X, X, X), 1, None, {"num_heads": H, "unidirectional": 1}, domain=MICROSOFT),
    Case("SkipLayerNormalization", (X, X, (D,), (D,)), 1, ((0, 1), (1, 1)), domain=MICROSOFT),
    Case("BiasGelu", (X, (D,)), 1, ((0, 1),), domain=MICROSOFT),
    Case("CumSum", (X,), 1, None, constants=((1, [1]),)),  # an operator without a rule
]  # fmt: skip


def build(case: Case, shapes: list[tuple[int, ...]], folder: Path) -> Graph:
    names = [f"x{i}" for i in range(len(shapes))]
    stored = dict(case.constants)
    reads = [*names, *(f"c{i}" for i in stored)]
    node = helper.make_node(case.op, reads, ["y"], domain=case.domain, **case.attrs)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)]
    constants = [numpy_helper.from_array(np.array(v, dtype=np.int64), f"c{i}") for i, v in stored.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "one", values, outputs, constants)
    opsets = [helper.make_opsetid("", case.opset), helper.make_opsetid(MICROSOFT, 1)]
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return probe_graph(load_model(path))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fewer_tokens_in_give_the_same_tokens_out(case: Case, tmp_path: Path) -> None:
    graph = build(case, list(case.shapes), tmp_path)
    found = trace_token_axis(graph, graph.nodes[0], TokenAxis(case.axis, case.n_tokens))
    if case.sources is None:
        assert found is None
        return
    assert found is not None
    assert tuple((slot.idx, tokens.axis) for slot, tokens in found) == case.sources
    rng = np.random.default_rng(0)
    whole = {f"x{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(case.shapes)}
    few = dict(whole)
    for idx, axis in case.sources:
        few[f"x{idx}"] = whole[f"x{idx}"].take(KEPT, axis)
    shorter = build(case, [few[f"x{i}"].shape for i in range(len(case.shapes))], tmp_path)
    expected = open_tapped(graph.model, []).run(whole)["y"].take(KEPT, case.axis)
    np.testing.assert_allclose(open_tapped(shorter.model, []).run(few)["y"], expected, rtol=1e-5, atol=1e-6)


class TestReshape:
    """Through a Reshape tokens keep their places in memory, so axes may fold and part."""

    @staticmethod
    def trace(shape: tuple[int, ...], target: list[int], tokens: TokenAxis, folder: Path) -> TokenAxis | None:
        graph = build(Case("Reshape", (shape,), 0, None, constants=((1, target),)), [shape], folder)
        found = trace_token_axis(graph, graph.nodes[0], tokens)
        return None if found is None else found[0][1]

    def test_heads_part(self, tmp_path: Path) -> None:
        assert self.trace((B, N, H * D), [B, N, H, D], TokenAxis(1, N), tmp_path) == TokenAxis(1, N)

    def test_images_before_tokens_fold(self, tmp_path: Path) -> None:
        assert self.trace((B * N, D), [B, N, D], TokenAxis(1, N), tmp_path) == TokenAxis(0, N)
        assert self.trace((B, N, D), [B * N, D], TokenAxis(0, N), tmp_path) == TokenAxis(1, N)

    def test_tokens_before_images_fold(self, tmp_path: Path) -> None:
        assert self.trace((N * B, D), [N, B, D], TokenAxis(0, N), tmp_path) == TokenAxis(0, N, inner=B)
        assert self.trace((N, B, D), [N * B, D], TokenAxis(0, N, inner=B), tmp_path) == TokenAxis(0, N)

    def test_tokens_that_are_cut_through(self, tmp_path: Path) -> None:
        assert self.trace((B, 6, 4), [B, 4, 6], TokenAxis(1, 4), tmp_path) is None
        assert self.trace((2, 2, 3), [4, 3], TokenAxis(0, 4), tmp_path) is None  # one axis becomes two

    def test_a_folded_axis_is_not_plain(self) -> None:
        assert TokenAxis(0, N).is_plain((N, B, D))
        assert not TokenAxis(0, N).is_plain((B * N, D))
