"""Checks on every pruned file before it gets its name: it is valid, has the same face, and computes what was solved.

    structure   onnx checker, strict shape inference, ONNX Runtime load
    signature   the same inputs and outputs: names, types, dimensions
    identity    the same passes with nothing removed give back the dense function
    padding     the pruned file answers as the same solution does at full width, padded with zeros
    batches     a dynamic batch runs at 1 and at N

and every pass's own (`Pass.check`): `replay`, on a real batch every product gives what NumPy computes from the solved
weights; `merge`, what merges and what comes of it is what NumPy says; `tokens`, the answers are the same with and
without the tokens that were left out.

Where a graph chooses, as which tokens merge, rounding may turn a choice between near-equals: models that are compared
then take the same choices (`Pass.choices`), and the pass's own check judges these.

A check is a value; `require_passed` turns a failed one into an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import ParamSpec

import numpy as np
import onnx
from jaxtyping import Float64

from corp_onnx.checks.answers import Once, PrunedAnswers, answer_pruned
from corp_onnx.errors import CheckFailedError, ModelError
from corp_onnx.graph import Graph, Model, batch_kind
from corp_onnx.graph.proto import skeleton
from corp_onnx.graph.write import needs_data_file
from corp_onnx.memory import release_memory
from corp_onnx.results import CheckResult
from corp_onnx.rewrite import Rewrite
from corp_onnx.run.comparison import compare_arrays, join_outputs, run_whole
from corp_onnx.run.runtime import first_sentence
from corp_onnx.run.sessions import open_session
from corp_onnx.threads import Crew

P = ParamSpec("P")

CHECKED_IMAGES = 2
"""What is to be the same is so for one image and its neighbour; each of them goes through eight models."""

SMALL_MODEL = 10**8
"""Parameters up to which several checks run at once, each with a rewritten model of its own in memory."""


def check_file(dense: Model, pruned: Model, path: Path) -> list[CheckResult]:
    """What a file must be before it is worth running."""
    return [check_structure(path, dense), check_signature(dense, pruned)]


def check_rewrite(
    graph: Graph, rewrite: Rewrite, models: Sequence[Model], feeds: Mapping[str, np.ndarray], provider: str = "cpu",
    expected: Float64[np.ndarray, " n"] | None = None, *, has_room: bool = True,
) -> list[CheckResult]:  # fmt: skip
    """What a rewritten model must compute.

    Args:
        graph: of the dense model.
        models: behind every pass, from `Rewrite.write`; files beside the last one may be written and go again.
        feeds: a real batch.
        expected: the dense model's answers to it, where they are known.
        has_room: whether memory allows several checks of a small model at once.
    """
    if expected is None:  # a batch that the dense model fails on is no fault of the rewrite
        expected = run_whole(graph.model, feeds, provider)
    pruned = models[-1]
    is_small = has_room and graph.n_stored < SMALL_MODEL
    # of a large one nothing stays open from one check to the next
    answers = Once(partial(answer_pruned, pruned, feeds, rewrite.choices, provider)) if is_small else None
    checks: list[Callable[[], CheckResult]] = [
        partial(check_identity, graph, rewrite, pruned, feeds, provider, expected),
        partial(check_padding, graph, rewrite, pruned, feeds, provider, answers),
    ]
    for one, before in zip(rewrite.passes, [graph.model, *models[:-1]], strict=True):
        checks.append(partial(_as_check(one.name)(one.check), graph, before, pruned, feeds, provider))
    if batch_kind(pruned) is None:
        checks.append(partial(check_batches, pruned, feeds, graph.float_type, provider, rewrite.choices, answers))
    with Crew(None if is_small else 1) as crew:
        return crew.map(lambda check: _run_check(check, is_small=is_small), checks)


def _run_check(check: Callable[[], CheckResult], *, is_small: bool) -> CheckResult:
    found = check()
    if not is_small:
        release_memory()  # before the next one opens a model
    return found


def check_structure(path: Path, dense: Model | None = None) -> CheckResult:
    """The onnx checker, strict shape inference, and whether ONNX Runtime loads the file.

    Args:
        dense: what the file was made from. Of one that ONNX Runtime runs although the checker or the inference refuses
            it, as one that declares its outputs wrongly, no more than ONNX Runtime can be asked.
    """
    complaint = _complain(path)
    if complaint is None or (dense is not None and _complain(dense.path) is not None):
        detail = "onnx checker, shape inference and ONNX Runtime load" if complaint is None else "ONNX Runtime loads it"
        try:
            open_session(path)
        except ModelError as error:
            return CheckResult("structure", False, None, None, str(error).rstrip("."))
        return CheckResult("structure", True, None, None, detail)
    return CheckResult("structure", False, None, None, complaint)


def _complain(path: Path) -> str | None:
    """What the onnx checker or strict shape inference have against a file."""
    try:
        onnx.checker.check_model(str(path))
        proto = onnx.load(str(path), load_external_data=False)
        onnx.shape_inference.infer_shapes(skeleton(proto), strict_mode=not _has_foreign_ops(proto))
    except Exception as error:  # checker and inference each have their own classes
        return first_sentence(error)
    return None


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
    pruned: Model, feeds: Mapping[str, np.ndarray], precision: str = "float32", provider: str = "cpu",
    choices: Sequence[str] = (), answers: Callable[[], PrunedAnswers] | None = None,
) -> CheckResult:  # fmt: skip
    """A dynamic batch at 1 and at N, at least 2: the first row must not depend on its neighbours.

    Args:
        choices: integer tensors that rounding may turn: alone, the row takes those that it has among others.
        answers: the model's, where they are asked for elsewhere as well.
    """
    given = answer_pruned(pruned, feeds, choices, provider) if answers is None else answers()
    n_rows, first = len(next(iter(given.feeds.values()))), pruned.proto.graph.output[0].name
    found, expected = given.ask_alone()[first].astype(np.float64), given.outputs[first][:1].astype(np.float64)
    return compare_arrays("batches", found, expected, precision, f"batch of 1 against batch of {n_rows}")


@_as_check("identity")
def check_identity(
    graph: Graph, rewrite: Rewrite, pruned: Model, feeds: Mapping[str, np.ndarray], provider: str = "cpu",
    expected: Float64[np.ndarray, " n"] | None = None,
) -> CheckResult:  # fmt: skip
    """The passes with nothing removed, against the dense model on a real batch.

    Args:
        expected: the dense model's answers, where they are known.
    """
    detail = "the same surgery with nothing removed, against the dense model"
    with _made(graph, rewrite.whole(graph), pruned) as whole:
        found = run_whole(whole, feeds, provider)
    if expected is None:
        expected = run_whole(graph.model, feeds, provider)
    return compare_arrays("identity", found, expected, graph.float_type, detail)


@_as_check("padding")
def check_padding(
    graph: Graph, rewrite: Rewrite, pruned: Model, feeds: Mapping[str, np.ndarray], provider: str = "cpu",
    answers: Callable[[], PrunedAnswers] | None = None,
) -> CheckResult:  # fmt: skip
    """The pruned file on a real batch against the same solution at full width, zeros where something was removed.

    Nothing may depend on a width but the widths: this is what sees a scale that follows the head size.

    Args:
        answers: the file's, where they are asked for elsewhere as well.
    """
    detail = "answers of the pruned file against the same solution padded with zeros to full width"
    given = answer_pruned(pruned, feeds, rewrite.choices, provider) if answers is None else answers()
    found, seen, choices = join_outputs(given.outputs), given.feeds, given.choices
    del given  # it may hold a session
    with _made(graph, rewrite.padded(), pruned) as padded:
        expected = run_whole(padded, seen, provider, choices)
    return compare_arrays("padding", found, expected, graph.float_type, detail)


@contextmanager
def _made(graph: Graph, rewrite: Rewrite, pruned: Model) -> Iterator[Model]:
    """A rewritten graph: in memory, or in a file below the pruned one's folder where it may outgrow protobuf."""
    if not needs_data_file(graph.model.proto):
        yield replace(graph.model, proto=rewrite.make(graph))
        return
    with tempfile.TemporaryDirectory(dir=pruned.folder) as folder:
        yield rewrite.write(graph, Path(folder) / "model.onnx")[-1]


def require_sound(checks: Sequence[CheckResult], what: str, output: Path) -> None:
    """As `require_passed`, of a rewrite that keeps its promises or is our fault.

    Args:
        output: where the model would have been.
    """
    advice = (
        f"Nothing was written to {output}. This is a fault of corp-onnx on this graph: please report it with the "
        "output of inspect."
    )
    require_passed(checks, what, advice)


def require_passed(checks: Sequence[CheckResult], what: str, advice: str) -> None:
    """Refuse a file that fails a check.

    Args:
        what: the model that was made, as `pruned`.
        advice: what became of the destination and what to do, behind the check's own words.

    Raises:
        CheckFailedError: names the check.
    """
    for check in (c for c in checks if not c.passed):
        known = check.difference is not None and check.tolerance is not None
        measured = f" (difference {check.difference:.2g}, allowed {check.tolerance:.2g})" if known else ""
        raise CheckFailedError(f"the {what} model failed its '{check.name}' check: {check.detail}{measured}. {advice}")
