"""`fit`: an ONNX file -> the same function in the form that a runtime wants, by zero padding where widths do not fit.

    load -> probe -> find blocks -> pad and fold -> write -> verify -> publish

Queries, keys and values that a target wants equal become as wide as the widest of them, rounded up to a multiple of 8
and to the target's least width: rows of zeros in their projections, columns of zeros in the output projection. Answers
stay the same to rounding; it costs multiplications by zero, so `prune --target` gives a better file where it still can.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from corp_onnx.blocks import find_blocks
from corp_onnx.checks.preflight import protect_model, watch_source
from corp_onnx.checks.verify import check_file, check_rewrite, require_sound
from corp_onnx.errors import NothingToPruneError, OptionError
from corp_onnx.graph import load_model
from corp_onnx.graph.model import require_file
from corp_onnx.graph.write import outdated_data
from corp_onnx.inspect import describe_model
from corp_onnx.progress import Progress, follow
from corp_onnx.results import CheckResult, Environment, ModelFacts, Result, Rows, describe_environment
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.comparison import TOLERANCE, compare_on_noise
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.staging import check_destination, refuse_folder, staged_files
from corp_onnx.targets import TARGETS, TargetName
from corp_onnx.units import fold_scales
from corp_onnx.units.padding import PaddedHeads, list_obstacles, pad_heads

FITTING: tuple[TargetName, ...] = tuple(name for name in TARGETS if name != "generic")
"""The targets that want anything."""


@dataclass(frozen=True, slots=True, repr=False)
class FitResult(Result):
    """What `fit` did.

    Attributes:
        padded: attentions that became wider.
        n_changed: attentions that became wider, or whose scale went into the weights.
        left: attentions that do not fit and can not be changed, with the reason.
    """

    verb: ClassVar[str] = "fit"
    source: ModelFacts
    fitted: ModelFacts
    target: str
    padded: tuple[PaddedHeads, ...]
    n_changed: int
    left: tuple[tuple[str, str], ...]
    checks: tuple[CheckResult, ...]
    environment: Environment

    schema: int = 1

    @property
    def summary(self) -> str:
        """What it cost."""
        return f"{self.fitted.path}: for {self.target}, {self.fitted.macs / self.source.macs:.1%} of the MACs"

    @property
    def table(self) -> Rows:
        """Attention by attention that became wider."""
        return [
            ["attention", "q, k", "v", "now"],
            *([p.key, str(p.d_qk), str(p.d_v), str(p.width)] for p in self.padded),
        ]


def default_output(model: Path, target: str) -> Path:
    """`<stem>.<target>.onnx` beside the model."""
    return model.with_name(f"{model.stem}.{target}.onnx")


def fit_model(
    model: Path | str,
    output: Path | str | None = None,
    *,
    target: TargetName = "tensorrt",
    force: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Write a model in the form that a runtime wants; its answers stay.

    Args:
        output: default `<stem>.<target>.onnx` beside the model.
        target: the runtime (targets.py).
        force: replace files that exist.
        progress: told how far the run is.

    Raises:
        InputError: the model, the target or the destination can not be used, or the model fits already.
        CheckFailedError: the new file answers otherwise; nothing was written.
    """
    if target not in FITTING:
        raise OptionError(f"--target must be one of {', '.join(FITTING)}; found {target}.")
    model = Path(model)
    require_file(model)
    output = Path(output) if output is not None else default_output(model, target)
    refuse_folder(output)
    run = follow(progress)
    with run.enter("load"):
        loaded = load_model(model)
        unchanged = watch_source(loaded)
        protect_model(loaded, {"-o": output}, output)
        check_destination(output, force=force)
        graph = probe_graph(loaded)
        blocks = find_blocks(graph)
    padded, changes = pad_heads(blocks, TARGETS[target])
    folded = fold_scales(blocks, changes) if TARGETS[target].folds_scale else changes
    left = list_obstacles(blocks, TARGETS[target])
    if not folded:
        why = f" {left[0][0]} does not: {left[0][1]}." if left else ""
        raise NothingToPruneError(f"{model}: nothing of it can be fitted to {target} any further.{why}")
    with staged_files({"-o": output}, force=force, outdated=outdated_data(output), before=unchanged) as (path,):
        with run.enter("write"):
            rewrite = plan_rewrite(folded, metadata=loaded.metadata)
            models = rewrite.write(graph, path)
        with run.enter("verify"):
            checks = check_file(loaded, models[-1], path)
            require_sound(checks, "fitted", output)
            checks += check_rewrite(graph, rewrite, models, random_feeds(loaded, graph.n_images))
            compared = compare_on_noise(loaded, models[-1])
            allowed = TOLERANCE[graph.float_type]
            checks.append(CheckResult("answers", compared.max_difference <= allowed, compared.max_difference, allowed,
                                      "answers on noise are those of the source"))  # fmt: skip
            require_sound(checks, "fitted", output)
        facts = describe_model(probe_graph(models[-1]))
    return FitResult(
        describe_model(graph), replace(facts, path=str(output)), target, padded, len(folded), left, tuple(checks),
        describe_environment("cpu"),
    )  # fmt: skip
