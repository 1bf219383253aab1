"""A file fitted to a runtime, in a few lines: what became wider, what it cost, what could not be changed."""

from __future__ import annotations

from corp_onnx.errors import clean_text
from corp_onnx.fit import FitResult


def describe_fit(result: FitResult) -> str:
    """The text that `corp-onnx fit` prints."""
    before, after = result.source, result.fitted
    lines = [
        *(f"{p.key}: heads of q and k {p.d_qk} wide, of v {p.d_v} -> {p.width}" for p in result.padded),
        f"attentions with their scale in the weights of the queries, or wider: {result.n_changed}",
        *(f"left as it is: {key}, {reason}" for key, reason in result.left),
        f"MACs {before.macs / 1e9:.4f} G -> {after.macs / 1e9:.4f} G ({after.macs / before.macs:.1%}), "
        f"{before.n_bytes / 1e6:.1f} MB -> {after.n_bytes / 1e6:.1f} MB",
        f"checks passed: {', '.join(check.name for check in result.checks)}",
        f"fitted to {result.target} -> {after.path}",
    ]
    return "\n".join(map(clean_text, lines))
