"""An attack on corp-onnx: spoilt models, odd inputs, bad places, kills; what is no sentence and no result is a fault.

    python tools/run_fuzz.py --minutes 5            # until the time is up; --seed draws other cases
    python tools/run_fuzz.py --count models=3000 inputs=1000 kill=200 --jobs 2
    python tools/run_fuzz.py --short                # a fixed list, which CI runs
    python tools/run_fuzz.py --list                 # every way by its name
    python tools/run_fuzz.py --case close_cycle --seed 7 --fixture hf_vit_ts14_eager --verb prune

A name and a seed are a case. Every run is a process of its own in a folder of its own, with 60 seconds and 6 GiB; most
are forks of one that has the package imported, none with --fresh.
Faults are printed with the command that repeats them, and kept in out/fuzz/. `fuzz/__init__.py` lists what is where.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where a test loads this file

from fuzz.journal import summarise
from fuzz.models import SMALL
from fuzz.plan import KINDS, NAMES, complete_case, list_endless, list_short, try_case
from fuzz.values import FAULT, Case, Finding
from fuzz.verbs import VERBS

OUT = Path(__file__).resolve().parent.parent / "out" / "fuzz"

EVERY = 100
"""Cases after which a line says how far it is."""

AHEAD = 8
"""Cases that wait for each process, so that none waits for a slow one."""


def main(argv: list[str] | None = None) -> int:
    """Tries the cases; 1 if one of them is a fault that nobody knows yet."""
    args = read_arguments(argv)
    if args.list:
        print("\n".join(NAMES))
        return 0
    faults = 0
    for title, cases, n in choose_cases(args):
        start = time.monotonic()
        findings = list(islice(try_cases(cases, args), n))
        print(f"{title}{summarise(findings)}\n{time.monotonic() - start:.0f} s", flush=True)
        faults += sum(one.verdict == FAULT and not one.known for one in findings)
    return 1 if faults else 0


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Attack corp-onnx.")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (5)")
    parser.add_argument("--count", nargs="+", type=read_count, metavar="KIND=N",
                        help=f"so many cases of a kind, however long it takes; of {', '.join(KINDS)}")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the cases, or of the one that --case names (0)")
    parser.add_argument("--only", default="", metavar="BEGIN", help="names that begin with this")
    parser.add_argument("--short", action="store_true", help="the fixed list")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--case", choices=NAMES, metavar="NAME", help="this one")
    parser.add_argument("--times", type=int, default=1, help="seeds of --case, from --seed on (1)")
    parser.add_argument("--fixture", default="", help=f"of tests/fixtures; default: drawn from {', '.join(SMALL)}")
    parser.add_argument("--verb", default="", choices=["", *VERBS], metavar="VERB", help="default: drawn")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time (1)")
    parser.add_argument("--fresh", action="store_true", help="a new process for every command, and no forks")
    parser.add_argument("--out", type=Path, default=OUT, help="where faults are kept (out/fuzz)")
    return parser.parse_args(argv)


def read_count(text: str) -> tuple[str, int]:
    """`KIND=N` as a pair."""
    kind, _, number = text.partition("=")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"'{kind}' is none of {', '.join(KINDS)}")
    return kind, int(number)


def choose_cases(args: argparse.Namespace) -> Iterator[tuple[str, Iterable[Case], int | None]]:
    """(title, cases, how many of them; None for all) of every part of a run."""
    if args.case:
        one = (Case(args.case, args.seed + i, args.fixture, args.verb) for i in range(args.times))
        yield "", map(complete_case, one), None
    elif args.count:
        for kind, n in args.count:
            yield f"{kind}: ", list_endless(args.seed, KINDS[kind]), n
    elif args.short:
        yield "", list_short(), None
    else:
        names = [name for name in NAMES if name.startswith(args.only)]
        yield "", stop_after(list_endless(args.seed, names), args.minutes * 60), None


def stop_after(cases: Iterable[Case], seconds: float) -> Iterator[Case]:
    """Cases until the time is up."""
    end = time.monotonic() + seconds
    for case in cases:
        if time.monotonic() > end:
            return
        yield case


def try_cases(cases: Iterable[Case], args: argparse.Namespace) -> Iterator[Finding]:
    """What comes of each that applies, in their order; each fault is printed as it is found."""
    attempt, n_tried = partial(try_case, folder=args.out, fresh=args.fresh), 0
    for finding in try_beside(cases, attempt, args.jobs) if args.jobs > 1 else map(attempt, cases):
        if finding is None:
            continue
        n_tried += 1
        if n_tried % EVERY == 0:
            print(f"{n_tried} cases", file=sys.stderr, flush=True)
        if finding.verdict == FAULT and not finding.known:
            place = "" if finding.folder is None else os.path.relpath(finding.folder)
            print(f"FAULT  {finding.reason}\n       {finding.case.command}\n       kept in {place}", flush=True)
        elif args.case:
            said = finding.run.err.strip()[:300] if finding.run else ""
            print(f"{finding.verdict}: {finding.reason or said}", flush=True)
        yield finding


def try_beside(cases: Iterable[Case], attempt: partial[Finding | None], jobs: int) -> Iterator[Finding | None]:
    """`map(attempt, cases)` in several processes; cases are drawn only a few ahead, because they may have no end."""
    waiting: deque[Future[Finding | None]] = deque()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            for case in cases:
                waiting.append(pool.submit(attempt, case))
                if len(waiting) > jobs * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())
