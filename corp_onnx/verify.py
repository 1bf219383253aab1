"""Checks on every pruned file before it gets its name: it is valid, has the same face, and computes what was solved.

    structure   onnx checker, strict shape inference, ONNX Runtime load
    signature   the same inputs and outputs: names, types, dimensions
    batches     a dynamic batch runs at 1 and at N
    identity    the same surgery at full width with nothing removed gives back the dense function
    padding     the pruned file answers as the same solution does at full width, padded with zeros
    replay      on a real batch every unit of the pruned graph gives what NumPy computes from the solved weights

A check is a value; `require_passed` turns a failed one into an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import numpy as np
import onnx

from corp_onnx.blocks import AttentionUnit, Blocks, MlpUnit, Operand
from corp_onnx.errors import CheckFailedError, ModelError
from corp_onnx.fullwidth import identity_changes, pad_changes
from corp_onnx.graph import Graph, Model, load_model
from corp_onnx.proto import skeleton
from corp_onnx.results import CheckResult
from corp_onnx.rewrite import AttentionChange, Changes, MlpChange, apply_changes, mapped_bias, mapped_weight
from corp_onnx.runtime import first_sentence, open_session, open_tapped
from corp_onnx.staging import write_model

P = ParamSpec("P")

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
        return CheckResult("structure", False, None, None, first_sentence(error))
    return CheckResult("structure", True, None, None, "onnx checker, shape inference and ONNX Runtime load")


def _has_foreign_ops(proto: onnx.ModelProto) -> bool:
    return any(n.domain not in ("", "ai.onnx") for n in proto.graph.node)


def check_signature(dense: Model, pruned: Model) -> CheckResult:
    """Inputs and outputs: names, element types and dimensions, in order."""
    before = [list(dense.proto.graph.input), list(dense.proto.graph.output)]
    after = [list(pruned.proto.graph.input), list(pruned.proto.graph.output)]
    return CheckResult("signature", before == after, None, None, "input and output names, types and dimensions")


def _as_check(name: str) -> Callable[[Callable[P, CheckResult]], Callable[P, CheckResult]]:
    """A check during which ONNX Runtime fails has failed."""

    def decorate(check: Callable[P, CheckResult]) -> Callable[P, CheckResult]:
        @wraps(check)
        def run(*args: P.args, **kwargs: P.kwargs) -> CheckResult:
            try:
                return check(*args, **kwargs)
            except ModelError as error:
                return CheckResult(name, False, None, None, str(error).rstrip("."))

        return run

    return decorate


@_as_check("batches")
def check_batches(
    pruned: Model, feeds: Mapping[str, np.ndarray], precision: str = "float32", provider: str = "cpu"
) -> CheckResult:
    """A dynamic batch at 1 and at N, at least 2: the first row must not depend on its neighbours."""
    session = open_tapped(pruned, [], provider=provider)
    single = {k: v[:1] for k, v in feeds.items()}
    whole = feeds if len(next(iter(feeds.values()))) > 1 else {k: _double(v) for k, v in feeds.items()}
    n_rows, first = len(next(iter(whole.values()))), session.outputs[0]
    found = session.run(single)[first].astype(np.float64)
    expected = session.run(whole)[first][:1].astype(np.float64)
    return _compare("batches", found, expected, precision, f"batch of 1 against batch of {n_rows}")


def _double(array: np.ndarray) -> np.ndarray:
    """Two rows of one, the second shifted, so that it is another image with the same numbers."""
    return np.concatenate([array, np.roll(array, 1, axis=-1)])


@_as_check("identity")
def check_identity(
    graph: Graph, blocks: Blocks, changes: Changes, feeds: Mapping[str, np.ndarray], stage: Path, provider: str = "cpu"
) -> CheckResult:
    """The surgery of `changes` with every width left whole, against the dense model on a real batch."""
    found = _run_changed(graph, blocks, identity_changes(graph, blocks, changes), feeds, stage, provider)
    expected = _run_whole(graph.model, feeds, provider)
    detail = "the same surgery with nothing removed, against the dense model"
    return _compare("identity", found, expected, graph.float_type, detail)


@_as_check("padding")
def check_padding(
    graph: Graph,
    blocks: Blocks,
    changes: Changes,
    pruned: Model,
    feeds: Mapping[str, np.ndarray],
    stage: Path,
    provider: str = "cpu",
) -> CheckResult:
    """The pruned file on a real batch against the same solution at full width, zeros where something was removed.

    Nothing may depend on a width but the widths: this is what sees a scale that follows the head size.
    """
    found = _run_whole(pruned, feeds, provider)
    expected = _run_changed(graph, blocks, pad_changes(blocks, changes), feeds, stage, provider)
    detail = "answers of the pruned file against the same solution padded with zeros to full width"
    return _compare("padding", found, expected, graph.float_type, detail)


def _run_changed(
    graph: Graph, blocks: Blocks, changes: Changes, feeds: Mapping[str, np.ndarray], stage: Path, provider: str
) -> np.ndarray:
    """Every output of a rewritten graph in one row; it is written below `stage` since it may outgrow protobuf."""
    proto = apply_changes(graph, blocks, changes, {})
    with tempfile.TemporaryDirectory(dir=stage) as folder:
        path = Path(folder) / "model.onnx"
        write_model(proto, path, graph.model.folder)
        del proto
        return _run_whole(load_model(path), feeds, provider)


def _run_whole(model: Model, feeds: Mapping[str, np.ndarray], provider: str) -> np.ndarray:
    """Every output in one row."""
    outputs = open_tapped(model, [], provider=provider).run(feeds).values()
    return np.concatenate([o.astype(np.float64).ravel() for o in outputs])


@_as_check("replay")
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
    if arrays[unit.hidden].shape[-1] != change.weight.shape[1]:
        return  # another width than was solved for: the first product has shown it
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
