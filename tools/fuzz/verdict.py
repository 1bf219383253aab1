"""Done, refused, or a fault: the only three things that a run may be.

refused   exit code 1 or 2, one line of ours on stderr, no file came, went or changed
done      exit code 0, what was asked for is there and nothing else; the oracle then looks at it
fault     everything else
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fuzz.values import DONE, FAULT, REFUSED, Run

OURS = "corp-onnx: "
BESIDE = ("warning: ", "memory: ", "no budget given: ")
"""What may stand on stderr beside the sentence."""

PROGRESS = re.compile(r"^[\w ,-]+( \.\.\.$|: \d+ of \d+ \w+|; \d+% of the run, about .* left$)")
"""A line of progress of a run that takes long."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys: a model's text must not reach it."""

NOT_INSTALLED = "ONNX Runtime is not installed"
"""It is, wherever this program runs: the reason is another one."""

BLAMES_ITSELF = "This is a fault of corp-onnx"


def judge(run: Run, outputs: Sequence[str] = (), needed: Sequence[str] = ()) -> tuple[str, str]:
    """(verdict, reason).

    Args:
        outputs: paths in work/ that may appear or change when it is done.
        needed: those of them that must.
    """
    reason = _find_fault(run)
    if not reason:
        reason = _judge_done(run, outputs, needed) if run.code == 0 else _judge_refusal(run)
    if reason:
        return FAULT, reason
    return (DONE if run.code == 0 else REFUSED), ""


def _find_fault(run: Run) -> str:
    """What no run may do, whatever it was asked."""
    if run.code is None:
        return "hangs"
    if "Traceback (most recent call last)" in run.err:
        return f"traceback: {_place(run.err)}"
    if run.code < 0:
        return f"ended by signal {-run.code}"
    if run.code not in (0, 1, 2, 141):
        return f"exit code {run.code}"
    if run.orphans:
        return f"leaves a process running: {run.orphans[0][:80]}"
    for name, text in (("stdout", run.out), ("stderr", run.err)):
        found = CONTROL.search(text)
        if found:
            return f"control character {found.group()!r} on {name}"
    if NOT_INSTALLED in run.err:
        return f"says that {NOT_INSTALLED}"
    if BLAMES_ITSELF in run.err:
        check = re.search(r"failed its '(\w+)' check", run.err)
        return f"blames itself{f' for its check {check.group(1)}' if check else ''}"
    return ""


def _place(err: str) -> str:
    """The last of our lines in a traceback, and what was raised: equal faults share it."""
    frames = re.findall(r'File "[^"]*?/corp_onnx/([^"]+)", line \d+, in (\w+)', err)
    last = next((line for line in reversed(err.splitlines()) if re.match(r"^[\w.]+(Error|Exception|\w+): ?", line)), "")
    kind = last.partition(":")[0].strip() or "?"
    return f"{' '.join(frames[-1]) if frames else 'outside'} {kind}"


def _judge_refusal(run: Run) -> str:
    lines = [line for line in run.err.splitlines() if not line.startswith(BESIDE) and not PROGRESS.match(line)]
    of_click = bool(lines) and lines[0].startswith("Usage: ") and lines[-1].startswith("Error: ")
    if not of_click and (len(lines) != 1 or not lines[0].startswith(OURS)):
        return f"exit code {run.code} with {len(lines)} lines on stderr: {_quote(lines)}"
    changes = changed_places(run)
    return f"refused, and {changes[0]}" if changes else ""


def _judge_done(run: Run, outputs: Sequence[str], needed: Sequence[str]) -> str:
    allowed = tuple(f"work/{name}" for name in outputs)
    for change in changed_places(run):
        path = change.split(" ", 1)[1]
        if not any(path == name or path.startswith(f"{name}/") for name in allowed):
            return f"done, and {change}"
    missing = [name for name in needed if f"work/{name}" not in run.after]
    if missing:
        return f"done, and there is no {missing[0]}"
    strange = [line for line in run.err.splitlines() if not line.startswith(BESIDE) and not PROGRESS.match(line)]
    return f"done, and stderr says {_quote(strange)}" if strange else ""


def _quote(lines: Sequence[str]) -> str:
    """A warning of Python without the path it comes from, else the first line that is not ours."""
    text = next((line for line in lines if not line.startswith(OURS)), "".join(lines[:1]))
    found = re.search(r"\b[A-Z]\w+Warning: .*", text)
    return repr((found.group() if found else text)[:100])


def changed_places(run: Run) -> list[str]:
    """`left NAME`, `removed NAME`, `changed NAME` for everything that is not as it was."""
    named = [f"left {name}" for name in run.after if name not in run.before]
    named += [f"removed {name}" for name in run.before if name not in run.after]
    return named + [f"changed {name}" for name, what in run.after.items() if run.before.get(name, what) != what]
