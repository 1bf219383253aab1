"""Faults on disk: out/fuzz/NAME-SEED-VERB/ holds the scratch folder, what was said, and the command that repeats it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fuzz.values import DONE, FAULT, REFUSED, Finding

MAX_SHOWN = 3
"""Commands shown for one reason."""


def keep_fault(finding: Finding, scratch: Path, folder: Path) -> Path:
    """Move what a fault left to a folder of its own."""
    case = finding.case
    place = folder / "-".join(str(word) for word in (case.name, case.seed, case.fixture, case.verb) if word != "")
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(scratch, place)
    (place / "command.txt").write_text(f"{case.command}\n{finding.reason}\n", encoding="utf-8")
    if finding.run is not None:
        (place / "stderr.txt").write_text(finding.run.err, encoding="utf-8")
        (place / "stdout.txt").write_text(finding.run.out, encoding="utf-8")
    return place


def summarise(findings: Iterable[Finding]) -> str:
    """Counts of the verdicts; then every reason of a fault with commands that repeat it."""
    findings = list(findings)
    counts = Counter(one.verdict for one in findings)
    known = sum(1 for one in findings if one.known)
    lines = [
        f"{len(findings)} cases: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in (DONE, REFUSED, FAULT))
    ]
    if known:
        lines[0] += f" ({known} of them known)"
    by_reason: dict[tuple[int, str], list[Finding]] = {}
    for one in findings:
        if one.verdict == FAULT:
            by_reason.setdefault((one.known, one.reason), []).append(one)
    for (point, reason), group in sorted(by_reason.items(), key=lambda item: (item[0][0], -len(item[1]))):
        lines.append(f"{len(group):4d} x {reason}" + (f" (point {point})" if point else ""))
        lines += [f"       {one.case.command}" for one in group[: 1 if point else MAX_SHOWN]]
    return "\n".join(lines)
