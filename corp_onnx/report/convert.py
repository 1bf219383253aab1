"""A conversion in a few lines: sizes, what is in which precision and why, how far the answers moved."""

from __future__ import annotations

from collections import Counter

from corp_onnx.errors import clean_text
from corp_onnx.precision.conversion import ConvertResult
from corp_onnx.report.outputs import describe_outputs


def describe_conversion(result: ConvertResult) -> str:
    """The text that `corp-onnx convert` prints."""
    before, after = result.source, result.converted
    lines = [
        f"{before.path}: {before.n_bytes / 1e6:.1f} MB in {before.precision} -> {after.n_bytes / 1e6:.1f} MB "
        f"({after.n_bytes / before.n_bytes:.1%})",
        _describe_integers(result) if after.precision.startswith("int8") else _describe_half(result),
        *(f"  float32: {text}" for text in _describe_kept_ops(result)),
        *(f"  {_name_rest(result)}: {text}" for text in _describe_kept(result)),
        _describe_comparison(result),
        *_describe_origin(result),
        f"checks passed: {', '.join(c.name for c in result.checks)}; {sum(s.seconds for s in result.stages):.0f} s",
        f"converted -> {after.path}",
    ]
    return "\n".join(map(clean_text, lines))


def _describe_origin(result: ConvertResult) -> list[str]:
    """Who said how the images are prepared; a guess is among the warnings."""
    origin = result.recipe_origin
    return [] if origin is None or origin.startswith("guessed") else [f"preprocessing: {origin}"]


def _describe_integers(result: ConvertResult) -> str:
    static = result.settings["target"] == "int8-static"
    how = "dynamic"
    if static:
        settings = result.settings
        how = f"static, {settings['activations']} activations, scales from {result.n_calibration} images by "
        how += settings["calibrator"]
    rest = f", the rest in {_name_rest(result)}, inputs and outputs {result.settings['io']}" if result.kept_ops else ""
    return (
        f"int8, {how}{rest}: {result.n_integer} of {result.n_products} products, {result.integer_share:.1%} of the "
        "multiply-accumulates"
    )


def _describe_half(result: ConvertResult) -> str:
    return f"float16, inputs and outputs {result.settings['io']}"


def _name_rest(result: ConvertResult) -> str:
    """The precision of what is not 8-bit."""
    return result.settings["rest"]


def _describe_kept_ops(result: ConvertResult) -> list[str]:
    """What stays in float32 of a float16 model, counted by kind."""
    return [", ".join(f"{count} {op}" for op, count in result.kept_ops.items())] if result.kept_ops else []


def _describe_kept(result: ConvertResult) -> list[str]:
    """The products that stay in float, counted by kind and reason."""
    counts = Counter((k.op, k.reason) for k in result.kept_products if k.loss is None)
    texts = [f"{count} {op} ({reason})" for (op, reason), count in counts.items()]
    measured = (k for k in result.kept_products if k.loss is not None)
    return texts + [f"{k.op} '{k.node}' ({k.reason}: alone it moves the answers by {k.loss:.2g})" for k in measured]


def _describe_comparison(result: ConvertResult) -> str:
    found = result.comparison
    far = f"answers off by at most {found.max_difference:.2%} of the largest"
    plural = "" if found.n_images == 1 else "s"
    data = (
        f"on {found.n_images} row{plural} of noise" if found.data == "noise" else f"on {found.n_images} image{plural}"
    )
    return f"{data}: {', '.join([*describe_outputs(found.outputs), far])}"
