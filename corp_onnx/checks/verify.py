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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import numpy as np
import onnx
from jaxtyping import Float

from corp_onnx.blocks import Blocks, Linear
from corp_onnx.errors import CheckFailedError, ModelError
from corp_onnx.graph import Graph, Model, Node, load_model, read_graph
from corp_onnx.graph.proto import skeleton
from corp_onnx.graph.write import write_model
from corp_onnx.results import CheckResult
from corp_onnx.rewrite import AttentionChange, Changes, MlpChange, apply_changes
from corp_onnx.rewrite.fullwidth import identity_changes, pad_changes
from corp_onnx.rewrite.heads import changed_products, joint_bias, joint_weight, list_parts
from corp_onnx.run.comparison import TOLERANCE
from corp_onnx.run.sessions import first_sentence, open_session, open_tapped
from corp_onnx.tokens.trim import TrimPlan, trim_file

P = ParamSpec("P")


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
    graph: Graph,
    blocks: Blocks,
    changes: Changes,
    feeds: Mapping[str, np.ndarray],
    stage: Path,
    provider: str = "cpu",
    *,
    trim: TrimPlan | None = None,
) -> CheckResult:
    """The surgery of `changes` with every width left whole, against the dense model on a real batch.

    Args:
        trim: the tokens whose leaving out is part of the surgery.
    """
    found = _run_changed(graph, blocks, identity_changes(graph, blocks, changes), feeds, stage, provider, trim=trim)
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
    graph: Graph, blocks: Blocks, changes: Changes, feeds: Mapping[str, np.ndarray], stage: Path, provider: str,
    *, trim: TrimPlan | None = None,
) -> np.ndarray:  # fmt: skip
    """Every output of a rewritten graph in one row; it is written below `stage` since it may outgrow protobuf."""
    proto = apply_changes(graph, blocks, changes, {}, apart=trim.apart if trim else ())
    with tempfile.TemporaryDirectory(dir=stage) as folder:
        path = Path(folder) / "model.onnx"
        write_model(proto, path, graph.model.folder)
        del proto
        if trim is not None:
            trim_file(path)
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
    *,
    apart: Collection[str] = (),
) -> CheckResult:
    """Every product that the rewrite touched, in the pruned graph on a real batch, against NumPy on its own input.

    Compared are an MLP's first and second products, and the queries and keys as the attention product reads them.
    Operands inside a fused attention operator can not be seen, nor queries that got a product of their own (`apart`);
    `identity` and `padding` cover those.
    """
    products = [p for p in list_products(graph, blocks, changes, apart) if p.linear.output is not None]
    inputs = _find_inputs(pruned, [p.linear for p in products])
    arrays = open_tapped(pruned, [*inputs, *(p.linear.output or "" for p in products)], provider=provider).run(feeds)
    worst, where = 0.0, ""
    for product, name in zip(products, inputs, strict=True):
        x, found = arrays[name], arrays[product.linear.output or ""]
        difference = relative_difference(found, product.apply(x, found.shape))
        if difference >= worst:
            worst, where = difference, product.key
    tolerance = TOLERANCE[graph.float_type]
    detail = f"{len(products)} products of the pruned graph against NumPy, worst {where}"
    return CheckResult("replay", bool(worst <= tolerance), worst, tolerance, detail)


def _find_inputs(pruned: Model, linears: Sequence[Linear]) -> list[str]:
    """What every product reads in the pruned graph: another tensor than before where tokens are selected for it."""
    makers = read_graph(pruned).producers
    return [_find_input(makers, linear) for linear in linears]


def _find_input(makers: Mapping[str, Node], linear: Linear) -> str:
    product = linear.node
    last = makers.get(product.output)
    if last is None or linear.input not in product.inputs:
        return linear.input
    # a bias that is new stands behind the product and has taken its name
    nodes = [last, *(makers[name] for name in last.inputs if name in makers)]
    now = next((node for node in nodes if node.op == product.op), None)
    return linear.input if now is None else now.inputs[product.inputs.index(linear.input)]


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What a product of the pruned graph must compute; `bias` is None where its output does not hold one."""

    key: str
    linear: Linear
    weight: Float[np.ndarray, "d_out d_in"]
    bias: Float[np.ndarray, " d_out"] | None

    def apply(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The output in float64, in the shape of what was found; of another size where the input has another width."""
        if x.shape[-1] != self.weight.shape[1]:
            return np.empty(0)
        y = x.astype(np.float64) @ self.weight.astype(np.float64).T
        y = y if self.bias is None else y + self.bias.astype(np.float64)
        return y.reshape(shape) if y.size == np.prod(shape) and self.linear.reshapes else y


def list_products(graph: Graph, blocks: Blocks, changes: Changes, apart: Collection[str] = ()) -> Iterator[Expected]:
    """Every product that the changes touch."""
    for unit in blocks.mlps:
        change = changes.get(unit.key)
        if isinstance(change, MlpChange):
            for up in unit.ups:
                rows = up.channel_idx[:, change.kept_idx].reshape(-1)
                bias = up.linear.read_bias(graph) if up.linear.output_has_bias else None
                weight = up.linear.read_weight(graph)[rows]
                yield Expected(unit.key, up.linear, weight, None if bias is None else bias[rows])
            late = unit.down.bias is not None and not unit.down.output_has_bias
            yield Expected(unit.key, unit.down, change.weight, None if late else change.bias)
    for unit in blocks.attentions:
        change = changes.get(unit.key)
        if isinstance(change, AttentionChange):
            for product in changed_products(list_parts(unit, change), apart=unit.key in apart):
                parts, linear = product.parts, product.parts[0].operand.linear
                bias = joint_bias(graph, parts) if linear.bias is not None and linear.output_has_bias else None
                yield Expected(unit.key, linear, joint_weight(graph, parts), bias)
            if change.out_weight is not None and unit.out is not None:
                bias = unit.out.linear.read_bias(graph) if change.out_bias is None else change.out_bias
                yield Expected(unit.key, unit.out.linear, change.out_weight, bias)


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
