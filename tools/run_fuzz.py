"""An attack on corp-onnx: spoilt models, odd inputs, bad places, kills; what is no sentence and no result is a fault.

    python tools/run_fuzz.py --minutes 5            # until the time is up; --seed draws other cases
    python tools/run_fuzz.py --short                # a fixed list, which CI runs
    python tools/run_fuzz.py --list                 # every way by its name
    python tools/run_fuzz.py --case close_cycle --seed 7 --fixture hf_vit_ts14_eager --verb prune

A name and a seed are a case. Every run is a process of its own in a folder of its own, with 60 seconds and 6 GiB.
Faults are printed with the command that repeats them, and kept in out/fuzz/. `fuzz/__init__.py` lists what is where.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where a test loads this file

from fuzz.journal import summarise
from fuzz.models import SMALL
from fuzz.plan import NAMES, complete_case, list_endless, list_short, try_case
from fuzz.values import FAULT, Case, Finding
from fuzz.verbs import VERBS

OUT = Path(__file__).resolve().parent.parent / "out" / "fuzz"


def main(argv: list[str] | None = None) -> int:
    """Tries the cases; 1 if one of them is a fault that nobody knows yet."""
    args = read_arguments(argv)
    if args.list:
        print("\n".join(NAMES))
        return 0
    if args.case:
        cases: Iterable[Case] = [
            complete_case(Case(args.case, args.seed + i, args.fixture, args.verb)) for i in range(args.times)
        ]
    else:
        cases = list_short() if args.short else list_endless(args.seed, args.only)
    seconds = float("inf") if args.case or args.short else args.minutes * 60
    findings = try_cases(cases, seconds, args.out, verbose=bool(args.case))
    print(summarise(findings))
    return 1 if any(one.verdict == FAULT and not one.known for one in findings) else 0


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Attack corp-onnx.")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases, or of the one that --case names (0)")
    parser.add_argument("--only", default="", metavar="BEGIN", help="names that begin with this")
    parser.add_argument("--short", action="store_true", help="the fixed list")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--case", choices=NAMES, metavar="NAME", help="this one")
    parser.add_argument("--times", type=int, default=1, help="seeds of --case, from --seed on (1)")
    parser.add_argument("--fixture", default="", help=f"of tests/fixtures; default: drawn from {', '.join(SMALL)}")
    parser.add_argument("--verb", default="", choices=["", *VERBS], metavar="VERB", help="default: drawn")
    parser.add_argument("--out", type=Path, default=OUT, help="where faults are kept (out/fuzz)")
    return parser.parse_args(argv)


def try_cases(cases: Iterable[Case], seconds: float, out: Path, *, verbose: bool) -> list[Finding]:
    """One after the other; each fault is printed as it is found."""
    findings: list[Finding] = []
    end = time.monotonic() + seconds
    for case in cases:
        if time.monotonic() > end:
            break
        finding = try_case(case, out)
        if finding is None:
            continue
        findings.append(finding)
        if finding.verdict == FAULT and not finding.known:
            print(
                f"FAULT  {finding.reason}\n       {case.command}\n       kept in {_shown(finding.folder)}", flush=True
            )
        elif verbose:
            said = finding.run.err.strip()[:300] if finding.run else ""
            print(f"{finding.verdict}: {finding.reason or said}", flush=True)
    return findings


def _shown(path: Path | None) -> str:
    return "" if path is None else os.path.relpath(path)


if __name__ == "__main__":
    sys.exit(main())
