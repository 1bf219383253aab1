"""The cases: how one is tried, a short fixed list, and all of them in an order of chance, without end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from fuzz import arrays, images, kills, oracle, places, texts
from fuzz.draw import DoesNotApplyError
from fuzz.forks import Server
from fuzz.journal import keep_fault
from fuzz.known import find_point
from fuzz.models import PHOTO_FIXTURE, SMALL, SPOILERS, copy_model, seed_of, spoil_model, write_arrays
from fuzz.runner import make_scratch, run_command, run_program, start_server
from fuzz.values import DONE, FAULT, Case, Command, Finding
from fuzz.verbs import FITTING, VERBS, list_needed
from fuzz.verdict import judge

SCENES = {
    scene.__name__: scene
    for scene in (*images.SCENES, *arrays.SCENES, *texts.SCENES, *places.SCENES)
    if scene.__name__ not in SPOILERS
}
"""All scenes by name."""

KILL, STARVE, CALM = "kill", "starve", "calm"
"""Cases of a verb and a seed: stopped, short of memory, and as it should be."""

STARVED = (150 << 20, 600 << 20)
"""Bytes of address space of a case that is short of it: from too little for Python's libraries to just enough."""

NAMES = (*SPOILERS, *SCENES, KILL, STARVE, CALM)

KINDS: dict[str, tuple[str, ...]] = {
    "models": SPOILERS, "inputs": tuple(SCENES), KILL: (KILL,), STARVE: (STARVE,), CALM: (CALM,)
}  # fmt: skip
"""Names by what is attacked."""

TOLERANCE = {"prune": "2e-4", "paper": "2e-4", "fit": "2e-4", "triton": "0", "python": "0"}
"""Of the oracle, by verb; other verbs change the numbers, and only names and shapes are compared."""


def complete_case(case: Case) -> Case:
    """With the fixture and verb that its seed draws, where none are given."""
    rng = seed_of(f"{case.name} where", case.seed)
    fixture, verb = SMALL[int(rng.integers(len(SMALL)))], list(VERBS)[int(rng.integers(len(VERBS)))]
    if case.name in SCENES:
        return replace(case, fixture=case.fixture or PHOTO_FIXTURE, verb="")
    verb = case.verb or verb
    if case.name in (KILL, STARVE, CALM):
        fixture = FITTING.get(verb, fixture)
    return replace(case, fixture=case.fixture or fixture, verb=verb)


def try_case(case: Case, folder: Path, *, fresh: bool = False) -> Finding | None:
    """Try one case; what a fault left is moved below `folder`. None where the fixture has nothing to spoil.

    Args:
        fresh: every command is a new process; else most of them are forks, see `forks.py`.
    """
    server = None if fresh else _server()
    with tempfile.TemporaryDirectory(prefix="corp-onnx-fuzz-") as temporary:
        scratch = make_scratch(Path(temporary) / "case")
        try:
            finding = _attack(case, scratch, server)
        except DoesNotApplyError:
            return None
        if finding.verdict == FAULT:
            point = find_point(f"{case.name}: {finding.reason}")
            finding = replace(finding, known=point, folder=keep_fault(finding, scratch, folder))
    return finding


@cache
def _server() -> Server:
    """One for each process of ours; it ends with it."""
    return start_server()


def _attack(case: Case, scratch: Path, server: Server | None) -> Finding:
    work = scratch / "work"
    rng = seed_of(case.name, case.seed)
    write_arrays(case.fixture, work / "calib.npz")
    copy_model(case.fixture, work / "sound.onnx")
    if case.name in SPOILERS:
        spoil_model(case.name, case.fixture, case.seed, work / "m.onnx")
        return _run(case, VERBS[case.verb], scratch, server)
    copy_model(case.fixture, work / "m.onnx")
    if case.name == KILL:
        reason, run = kills.stop_verb(VERBS[case.verb], scratch, rng)
        return Finding(case, FAULT if reason else DONE, reason, run)
    if case.name == STARVE:
        return _run(case, replace(VERBS[case.verb], memory=int(rng.integers(*STARVED))), scratch, server)
    if case.name == CALM:
        return _run(case, VERBS[case.verb], scratch, server)
    images.write_photos(work / "photos")
    return _run(case, SCENES[case.name](work, rng), scratch, server)


def _run(case: Case, command: Command, scratch: Path, server: Server | None) -> Finding:
    run = run_command(command, scratch, server)
    verdict, reason = judge(run, command.outputs, list_needed(command) if case.verb else ())
    if verdict == DONE and case.verb:
        reason = ask_oracle(command, case.verb, scratch, server)
        verdict = FAULT if reason else DONE
    return Finding(case, verdict, reason, run)


def ask_oracle(command: Command, verb: str, scratch: Path, server: Server | None) -> str:
    """What plain ONNX Runtime says against a result that was accepted; empty where nothing."""
    work = scratch / "work"
    written = {"triton": work / "repository/m/1/model.onnx", "python": work / "repository/m/1/model.onnx"}
    result = written.get(verb, work / "p.onnx")
    if not command.outputs:
        return ""
    tolerance = TOLERANCE.get(verb, "shapes") if verb in written or verb == "fit" else "shapes"
    reason = _compare(work / "m.onnx", result, tolerance, scratch, server)
    if reason or verb not in ("prune", "paper"):
        return reason
    whole = work / "whole.onnx"
    again = [{"p.onnx": "again.onnx"}.get(str(word), str(word)) for word in command.arguments]
    code, _ = run_program("fuzz.whole", [str(whole), *again], scratch, server)
    if code != 0:
        return f"the same prune again ends with {code}"
    return _compare(work / "m.onnx", whole, TOLERANCE[verb], scratch, server)


def _compare(source: Path, result: Path, tolerance: str, scratch: Path, server: Server | None) -> str:
    code, said = run_program("fuzz.oracle", [str(source), str(result), tolerance], scratch, server)
    if code in (oracle.SAME, oracle.UNKNOWN):
        return ""
    return f"oracle: {said.strip() or f'ends with {code}'}"


def list_endless(seed: int, names: Sequence[str] = NAMES) -> Iterator[Case]:
    """Every name in turn, in an order of chance, again and again."""
    turn = 0
    while True:
        order = seed_of("order", seed + turn).permutation(len(names))
        for i in order:
            yield complete_case(Case(names[int(i)], seed * 1_000_000 + turn, ""))
        turn += 1


def list_short() -> list[Case]:
    """A fixed list that takes about a minute: some of every kind, one that is killed and one short of memory."""
    names = [CALM, *SPOILERS[::4], *list(SCENES)[::2], KILL, STARVE]
    return [complete_case(Case(name, 0, "")) for name in names]
