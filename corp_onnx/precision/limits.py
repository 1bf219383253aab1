"""What other runtimes are known to do wrongly with converted files: for the warning of `convert` and docs/runtimes.md.

Measured by tools/runtimes.py; a test holds this table against its record, docs/runtimes.json.
"""

from __future__ import annotations

from dataclasses import dataclass

from corp_onnx.precision.conversion import Target


@dataclass(frozen=True, slots=True)
class Limit:
    """A runtime that does not answer as ONNX Runtime does.

    Attributes:
        runtime: its name in the record.
        title: its name and the version that was measured.
        targets: of which conversions.
        silent: it answers, and wrongly; else it refuses the file.
    """

    runtime: str
    title: str
    targets: tuple[Target, ...]
    silent: bool = False


LIMITS = (
    Limit("mnn", "MNN 3.6.1", ("int8-dynamic",), silent=True),
    Limit("opencv", "OpenCV dnn 5.0.0", ("int8-dynamic",)),
    Limit("ncnn", "ncnn (20261020, behind pnnx)", ("fp16", "int8-dynamic", "int8-static")),
)


def warn_of_runtimes(target: Target) -> list[str]:
    """One line where some runtime answers such a file wrongly without a word; refusals are said beside it."""
    wrong = [limit.title for limit in LIMITS if target in limit.targets and limit.silent]
    refusing = [limit.title for limit in LIMITS if target in limit.targets and not limit.silent]
    if not wrong:
        return []
    verb = "answers" if len(wrong) == 1 else "answer"
    others = f"; {' and '.join(refusing)} refuse{'s' if len(refusing) == 1 else ''} it" if refusing else ""
    return [f"{' and '.join(wrong)} {verb} this file wrongly without a word{others} (docs/runtimes.md)."]
