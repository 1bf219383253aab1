"""How much memory a command takes, stage by stage, and what of it is pages of mapped files.

    python tools/memory_table.py prune huge.onnx --calib photos/ --preset paper --memory 12GiB -o out/pruned.onnx
    python tools/memory_table.py --json out/inspect.json inspect huge.onnx

Enters a command line of `corp-onnx`; leaves a table: of every stage that the command times (`StageClock`), and of what
lies between, its seconds and the most that was resident, of processes that it starts as well, sampled ten times a
second from the system. Mapped pages are the system's to take back; the rest is not. Pages of several processes are
counted in each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

INTERVAL = 0.1
"""Seconds between two looks."""

BETWEEN = ""
"""The stage of what no stage covers."""


@dataclass(slots=True)
class Row:
    """A stage: when it began, how long it took, and the most that was resident in it, in GiB."""

    stage: str
    start: float
    seconds: float = 0.0
    resident: float = 0.0
    mapped: float = 0.0


def read_status(pid: int) -> tuple[int, int]:
    """(resident, mapped pages of files) of a process in KiB; zeros when it is gone."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return tuple(int(fields[name].split()[0]) for name in ("VmRSS", "RssFile"))  # pyright: ignore
    except (OSError, KeyError, ValueError):
        return 0, 0


def list_processes(pid: int) -> Iterator[int]:
    """A process and all that come from it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:
            continue
        for child in found:
            yield from list_processes(int(child))


def watch(arguments: list[str]) -> tuple[int, list[Row]]:
    """Run a command; its exit code, and its stages with what lies between."""
    reading, writing = os.pipe()
    child = subprocess.Popen([sys.executable, __file__, "--child", str(writing), *arguments], pass_fds=[writing])
    os.close(writing)
    rows, lock = [Row(BETWEEN, time.monotonic())], threading.Lock()

    def follow() -> None:
        with os.fdopen(reading) as lines:
            for line in lines:
                now = time.monotonic()
                with lock:
                    rows[-1].seconds = now - rows[-1].start
                    rows.append(Row(line.strip(), now))

    follower = threading.Thread(target=follow)
    follower.start()
    while child.poll() is None:
        found = [read_status(pid) for pid in list_processes(child.pid)]
        resident, mapped = (sum(one[i] for one in found) / 2**20 for i in (0, 1))
        with lock:
            if resident > rows[-1].resident:
                rows[-1].resident, rows[-1].mapped = resident, mapped
        time.sleep(INTERVAL)
    follower.join()
    rows[-1].seconds = time.monotonic() - rows[-1].start
    return child.returncode, rows


def run_child(report: int, arguments: list[str]) -> int:
    """The command in this process, which says on a pipe when a stage begins and ends."""
    from corp_onnx.threads import choose_kernels

    choose_kernels()  # as the command does, before NumPy is loaded
    from corp_onnx.__main__ import main
    from corp_onnx.results import StageClock

    measured = StageClock.stage

    @contextmanager
    def told(clock: StageClock, name: str) -> Iterator[None]:
        os.write(report, f"{name}\n".encode())
        with measured(clock, name):
            yield
        os.write(report, f"{BETWEEN}\n".encode())

    StageClock.stage = told  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv = ["corp-onnx", *arguments]
    return int(main() or 0)


def describe(rows: list[Row]) -> str:
    """The stages as a table; what lies between them only where it takes a second."""
    lines = ["| stage | seconds | GiB at the most | of it mapped |", "|---|---|---|---|"]
    for row in rows:
        if row.stage or row.seconds >= 1:
            lines.append(f"| {row.stage or '(else)'} | {row.seconds:.1f} | {row.resident:.2f} | {row.mapped:.2f} |")
    peak = max(rows, key=lambda row: row.resident)
    total = rows[-1].start + rows[-1].seconds - rows[0].start
    return "\n".join([*lines, f"| all | {total:.1f} | {peak.resident:.2f} | {peak.mapped:.2f} |"])


def main() -> int:
    """Run one and print its table."""
    if sys.argv[1:2] == ["--child"]:
        return run_child(int(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description="Measure the memory of a command.")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="verb and options of corp-onnx")
    args = parser.parse_args()
    code, rows = watch(args.command)
    print(describe(rows))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
