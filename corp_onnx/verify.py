"""Checks on every pruned file before it gets its name: it is valid, has the same face, and computes what was solved.

    structure   onnx checker, strict shape inference, ONNX Runtime load
    signature   the same inputs and outputs: names, types, dimensions
    batches     a dynamic batch runs at 1 and at N
    identity    the same surgery at full width with nothing removed gives back the dense function
    replay      on a real batch every unit of the pruned graph gives what NumPy computes from the solved weights

A check is a value; `require_passed` turns a failed one into an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from corp_onnx.blocks import AttentionUnit, Blocks, MlpUnit, Operand
from corp_onnx.errors import CheckFailedError
from corp_onnx.graph import Graph, Model, skeleton
from corp_onnx.results import CheckResult
from corp_onnx.rewrite import AttentionChange, Changes, MlpChange, apply_changes, mapped_bias, mapped_weight
from corp_onnx.runtime import open_session, open_tapped
from corp_onnx.staging import write_model

TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest accepted difference relative to the largest value, by the precision of the weights: a few hundred roundings
of that precision, since twelve blocks of them add up."""


def check_structure(path: Path) -> CheckResult:
    """The onnx checker, strict shape inference, and whether ONNX Runtime loads the file."""
    try:
        onnx.checker.check_model(str(path))
        proto = onnx.load(str(path), load_external_data=False)
        onnx.shape_inference.infer_shapes(skeleton(proto), strict_mode=not _has_foreign_ops(proto))
        open_session(path)
    except Exception as error:  # checker, inference and ONNX Runtime each have their own classes
        return CheckResult(
            "structure", passed=False, difference=None, tolerance=None, detail=str(error).splitlines()[0]
        )
    return CheckResult("structure", True, None, None, "onnx checker, shape inference and ONNX Runtime load")


def _has_foreign_ops(proto: onnx.ModelProto) -> bool:
    return any(n.domain not in ("", "ai.onnx") for n in proto.graph.node)


def check_signature(dense: Model, pruned: Model) -> CheckResult:
    """Inputs and outputs: names, element types and dimensions, in order."""
    before = [list(dense.proto.graph.input), list(dense.proto.graph.output)]
    after = [list(pruned.proto.graph.input), list(pruned.proto.graph.output)]
    return CheckResult("signature", before == after, None, None, "input and output names, types and dimensions")


def check_batches(pruned: Model, feeds: Mapping[str, np.ndarray], provider: str = "cpu") -> CheckResult:
    """A dynamic batch at 1 and at N: the first row must not depend on its neighbours."""
    n_rows = len(next(iter(feeds.values())))
    session = open_session(pruned, provider=provider)
    whole = session.run(None, dict(feeds))[0].astype(np.float64)
    single = session.run(None, {k: v[:1] for k, v in feeds.items()})[0].astype(np.float64)
    return _compare("batches", single, whole[:1], "float32", f"batch of 1 against batch of {n_rows}")


def check_identity(
    graph: Graph, blocks: Blocks, changes: Changes, feeds: Mapping[str, np.ndarray], stage: Path, provider: str = "cpu"
) -> CheckResult:
    """The surgery of `changes` with every width left whole, against the dense model on a real batch."""
    proto = apply_changes(graph, blocks, identity_changes(graph, blocks, changes), {})
    path = stage / "identity.onnx"
    try:
        write_model(proto, path, graph.model.folder)
        found = open_session(path, provider=provider).run(None, dict(feeds))
    finally:
        for file in stage.glob("identity.onnx*"):
            file.unlink()
    expected = open_session(graph.model, provider=provider).run(None, dict(feeds))
    return _compare(
        "identity",
        np.concatenate([f.astype(np.float64).ravel() for f in found]),
        np.concatenate([e.astype(np.float64).ravel() for e in expected]),
        graph.float_type,
        "the same surgery with nothing removed, against the dense model",
    )


def identity_changes(graph: Graph, blocks: Blocks, changes: Changes) -> dict[str, MlpChange | AttentionChange]:
    """For every unit that changes, the change that removes nothing."""
    whole: dict[str, MlpChange | AttentionChange] = {}
    for unit in blocks.mlps:
        if unit.key in changes:
            bias = unit.down.read_bias(graph)
            whole[unit.key] = MlpChange(
                np.arange(unit.d_hidden),
                unit.down.read_weight(graph),
                np.zeros(unit.down.d_out) if bias is None else bias,
            )
    for unit in blocks.attentions:
        change = changes.get(unit.key)
        if isinstance(change, AttentionChange):
            whole[unit.key] = _identity_attention(graph, unit, change)
    return whole


def _identity_attention(graph: Graph, unit: AttentionUnit, change: AttentionChange) -> AttentionChange:
    eye = [None if m is None else np.broadcast_to(np.eye(m.shape[2]), (m.shape[0], m.shape[2], m.shape[2]))
           for m in (change.q_map, change.k_map, change.v_map)]  # fmt: skip
    out = unit.out.linear if unit.out is not None and change.v_map is not None else None
    weight = None if out is None or unit.out is None else out.read_weight(graph)[:, unit.out.channel_idx.reshape(-1)]
    return AttentionChange(*eye, out_weight=weight, out_bias=None if out is None else out.read_bias(graph))


def check_replay(
    graph: Graph,
    blocks: Blocks,
    changes: Changes,
    pruned: Model,
    feeds: Mapping[str, np.ndarray],
    provider: str = "cpu",
) -> CheckResult:
    """Every product that the rewrite touched, in the pruned graph on a real batch, against NumPy on its own input.

    Compared are an MLP's first and second products, and the queries and keys as the attention product reads them.
    Operands inside a fused attention operator can not be seen; `identity` covers those.
    """
    arrays = open_tapped(pruned, _replay_taps(blocks, changes), provider=provider).run(feeds)
    worst, where, n_compared = 0.0, "", 0
    for key, found, expected in _replay_pairs(graph, blocks, changes, arrays):
        difference = relative_difference(found, expected)
        n_compared += 1
        if difference >= worst:
            worst, where = difference, key
    tolerance = TOLERANCE[graph.float_type]
    detail = f"{n_compared} products of the pruned graph against NumPy, worst {where}"
    return CheckResult("replay", bool(worst <= tolerance), worst, tolerance, detail)


def _replay_taps(blocks: Blocks, changes: Changes) -> list[str]:
    taps: list[str] = []
    for unit in blocks.mlps:
        if unit.key in changes:
            taps += [unit.hidden, unit.down.output or "", unit.ups[0].linear.input]
            taps += [up.linear.output or "" for up in unit.ups]
    for unit in blocks.attentions:
        for operand in _visible(unit, changes):
            taps += [operand.linear.input, operand.linear.output or ""]
    return [t for t in dict.fromkeys(taps) if t]


def _visible(unit: AttentionUnit, changes: Changes) -> list[Operand]:
    """Operands of a changed attention whose projection is a tensor of the graph."""
    if unit.key not in changes:
        return []
    return [o for o in (unit.q, unit.k, unit.v) if o is not None and o.linear.output is not None]


def _replay_pairs(graph: Graph, blocks: Blocks, changes: Changes, arrays: Mapping[str, np.ndarray]):
    """(unit key, found, expected) for every product."""
    for unit in blocks.mlps:
        change = changes.get(unit.key)
        if isinstance(change, MlpChange):
            yield from _replay_mlp(graph, unit, change, arrays)
    for unit in blocks.attentions:
        change = changes.get(unit.key)
        operands = _visible(unit, changes)
        if isinstance(change, AttentionChange) and operands:
            yield from _replay_projections(graph, unit, change, operands, arrays)


def _replay_mlp(graph: Graph, unit: MlpUnit, change: MlpChange, arrays: Mapping[str, np.ndarray]):
    x = arrays[unit.ups[0].linear.input].astype(np.float64)
    for up in unit.ups:
        rows = up.channel_idx[:, change.kept_idx].reshape(-1)
        expected = x @ up.linear.read_weight(graph)[rows].astype(np.float64).T
        bias = up.linear.read_bias(graph)
        expected = expected if bias is None else expected + bias[rows].astype(np.float64)
        yield unit.key, arrays[up.linear.output or ""], expected
    late_bias = unit.down.bias is not None and not unit.down.output_has_bias
    expected = arrays[unit.hidden].astype(np.float64) @ change.weight.T + (0.0 if late_bias else change.bias)
    yield unit.key, arrays[unit.down.output or ""], expected


def _replay_projections(
    graph: Graph,
    unit: AttentionUnit,
    change: AttentionChange,
    operands: Sequence[Operand],
    arrays: Mapping[str, np.ndarray],
):
    """The projection's output, which holds the operands it makes one behind the other."""
    maps = {id(unit.q): change.q_map, id(unit.k): change.k_map, id(unit.v): change.v_map}
    by_output: dict[str, list[Operand]] = {}
    for operand in operands:
        by_output.setdefault(operand.linear.output or "", []).append(operand)
    for output, parts in by_output.items():
        if all(maps[id(o)] is None for o in parts):
            continue
        x = arrays[parts[0].linear.input].astype(np.float64)
        expected = x @ np.concatenate([mapped_weight(graph, o, maps[id(o)]) for o in parts]).T
        if parts[0].linear.bias is not None and parts[0].linear.output_has_bias:
            biases = [mapped_bias(graph, o, maps[id(o)]) for o in parts]
            expected = expected + np.concatenate([b for b in biases if b is not None])
        yield unit.key, arrays[output], expected


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found - expected| / max |expected|; infinite where shapes differ or a value is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0.0)) / scale


def _compare(name: str, found: np.ndarray, expected: np.ndarray, precision: str, detail: str) -> CheckResult:
    difference = relative_difference(found, expected)
    tolerance = TOLERANCE[precision]
    return CheckResult(name, bool(difference <= tolerance), difference, tolerance, detail)


def require_passed(checks: Sequence[CheckResult], destination: Path) -> None:
    """Refuse a file that fails a check.

    Raises:
        CheckFailedError: names the check; the destination was not written.
    """
    failed = [c for c in checks if not c.passed]
    if failed:
        check = failed[0]
        measured = f" (difference {check.difference:.2g}, allowed {check.tolerance:.2g})" if check.tolerance else ""
        raise CheckFailedError(
            f"the pruned model failed its '{check.name}' check: {check.detail}{measured}. Nothing was written to "
            f"{destination}. This is a fault of corp-onnx on this graph: please report it with the output of inspect."
        )
