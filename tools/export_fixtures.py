r"""tests/fixtures: small random-weight graphs from the real libraries, and a manifest that says what each one is.

In: timm, transformers and torchvision, built from their configuration (no download). Out: one `.onnx` file a row of
the table in `fixtures/`, `manifest.json` (what every row is and what a reader should find in it) and `README.md` (the
same as a table).

    python3 -m venv /tmp/timmenv
    /tmp/timmenv/bin/pip install timm transformers torchvision onnx onnxruntime onnxscript onnxslim onnxsim sympy
    /tmp/timmenv/bin/python tools/export_fixtures.py                    # every row
    /tmp/timmenv/bin/python tools/export_fixtures.py --only timm_vit_ts17_fused
    /tmp/timmenv/bin/python tools/export_fixtures.py --table            # README.md from manifest.json

The rows named hf_v4_* want transformers 4, the other hf_* rows 5; what the environment does not have is skipped:

    /tmp/timmenv/bin/pip install --target /tmp/tf4 --no-deps "transformers<5" "huggingface_hub<1" "tokenizers<0.23" \
        requests urllib3 charset_normalizer certifi idna
    PYTHONPATH=/tmp/tf4 /tmp/timmenv/bin/python tools/export_fixtures.py --only 'hf_v4_*'

Rows are independent: one that fails is reported, keeps its old entry in the manifest and does not stop the others.
Every weight is drawn from a generator seeded with the row's model, so two exporters of one model hold equal numbers.
Each file passes `onnx.checker`, and, where `runs` is true, ONNX Runtime's answer is compared with PyTorch's.
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fixtures.manifest import read_manifest, write_manifest, write_table
from fixtures.rows import ROWS
from fixtures.values import Row

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


def main(argv: list[str] | None = None) -> int:
    """Exports the asked rows; 1 if one failed."""
    args = read_arguments(argv)
    if args.list:
        print("\n".join(row.name for row in ROWS))
        return 0
    failures = [] if args.table else export_rows(args)
    write_table(args.out / "README.md", list(read_manifest(args.out / "manifest.json").values()))
    print(f"{len(failures)} failed" + (": " + ", ".join(failures) if failures else ""))
    return 1 if failures else 0


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Export the test graphs.")
    parser.add_argument("--only", action="append", metavar="NAME", help="this row (repeatable; a prefix with *)")
    parser.add_argument("--out", type=Path, default=FIXTURES, help="default: tests/fixtures")
    parser.add_argument("--table", action="store_true", help="only write README.md from manifest.json")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--verbose", action="store_true", help="print tracebacks")
    return parser.parse_args(argv)


def export_rows(args: argparse.Namespace) -> list[str]:
    """The names of the rows that failed; the manifest is written after every row that did not."""
    import onnxruntime as ort  # here and below, so that --list and --table do without PyTorch
    import torch

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"python {platform.python_version()}, torch {torch.__version__}, onnxruntime {ort.__version__}")
    manifest = args.out / "manifest.json"
    entries, failures = read_manifest(manifest), []
    for row in ROWS:
        if args.only and not any(Path(row.name).match(name) for name in args.only):
            continue
        if row.major is not None and row.major != int(version(row.library).partition(".")[0]):
            print(f"skipped {row.name}: needs {row.library} {row.major}", flush=True)
            continue
        entry = try_row(row, args.out, args.verbose)
        if entry is None:
            failures.append(row.name)
            continue
        entries[row.name] = entry
        write_manifest(manifest, entries)
    return failures


def try_row(row: Row, out: Path, verbose: bool) -> dict[str, Any] | None:
    """The manifest entry of one exported row, None if it failed: that must not stop the others."""
    from fixtures.export import export_row

    try:
        entry = export_row(row, out)
    except Exception as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        print(f"FAILED  {row.name}: {type(error).__name__}: {first[:300]}", flush=True)
        if verbose:
            traceback.print_exc()
        return None
    error = entry["max_rel_error"]
    print(f"ok      {row.name}: {entry['bytes']} bytes, {error if error is None else f'{error:.1e}'}", flush=True)
    return entry


if __name__ == "__main__":
    sys.exit(main())
