"""A verb stopped at a moment of chance: the destination is the old file or the new one, and the next run cleans up.

calm run -> what the new files are, and how long it takes
run over old files with --force, stopped
run again, not stopped -> done, and nothing hidden is left
"""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path

from fuzz.draw import Rng, pick
from fuzz.runner import run_command
from fuzz.values import Command, Run
from fuzz.verdict import changed_places

STOPPED = ("prune", "paper", "fp16", "int8", "static", "triton", "python")
"""Verbs that write, most of what can go wrong."""

READING = ("inspect", "evaluate", "bench")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
CODES = {signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2), signal.SIGKILL: (-9,)}
"""How a stopped run may end beside being done; before Python is up, the signal itself ends it."""

HIDDEN = ".corp-onnx-partial-"
OLD = b"the old file\n"


def stop_verb(command: Command, scratch: Path, rng: Rng) -> tuple[str, Run]:
    """(what is wrong or empty, the last run)."""
    calm = run_command(command, scratch)
    if calm.code != 0:
        return f"a calm run ends with {calm.code}", calm
    new = _read_outputs(calm, command)
    if any(name.startswith("p.") for name in command.outputs):
        for path in (scratch / "work").glob("p.*"):
            path.write_bytes(OLD)
    forced = replace(command, arguments=(*command.arguments, *(["--force"] if command.outputs else [])))
    number = pick(rng, SIGNALS)
    stopped = run_command(replace(forced, stop=(float(rng.uniform(0, calm.seconds * 1.1)), number)), scratch)
    reason = _judge_stopped(stopped, command, new, number)
    if reason:
        return f"{number.name}: {reason}", stopped
    again = run_command(forced, scratch)
    reason = _judge_again(again, new)
    return (f"after {number.name}: {reason}" if reason else ""), again


def _read_outputs(run: Run, command: Command) -> dict[str, str]:
    """Hashes of what a calm run wrote; reports hold times and differ."""
    places = tuple(f"work/{name}" for name in command.outputs)
    return {name: what for name, what in run.after.items() if name.startswith(places) and places}


def _judge_stopped(run: Run, command: Command, new: dict[str, str], number: signal.Signals) -> str:
    if run.code is None:
        return "hangs"
    if "Traceback" in run.err:
        # Python's own start-up, an editable install's finder in it, may be interrupted: no line of ours has run
        return "traceback" if re.search(r'File "[^"]*/corp_onnx/', run.err) else ""
    if run.code not in (0, *CODES[number]):
        return f"exit code {run.code}"
    if run.orphans:
        return f"leaves a process running: {run.orphans[0][:80]}"
    places = tuple(f"work/{name}" for name in command.outputs)
    for change in changed_places(run):
        name = change.split(" ", 1)[1]
        hidden = HIDDEN in name or name.startswith("tmp/")
        if hidden and number == signal.SIGKILL:
            continue  # nobody can clean up after that but the next run
        if hidden or not (places and name.startswith(places)):
            return change.replace(name, _unhash(name))
        whole = name.endswith(".report.json") or run.after.get(name) == new.get(name)
        if not whole:
            return f"{change}, which is neither old nor new"
    return ""


def _judge_again(run: Run, new: dict[str, str]) -> str:
    if run.code != 0:
        return f"the next run ends with {run.code}: {run.err.strip()[:120]!r}"
    left = [name for name in run.after if HIDDEN in name or name.startswith(("work/out", "tmp/"))]
    if left:
        return f"the next run leaves {_unhash(left[0])}"
    other = [name for name, what in new.items() if not name.endswith(".json") and run.after.get(name) != what]
    return f"the next run writes another {other[0]}" if other else ""


def _unhash(name: str) -> str:
    """A name without the part that differs from run to run."""
    head, mark, _ = name.partition(HIDDEN)
    return f"{head}{mark}..." if mark else "/".join(name.split("/")[:1]) + "/..."
