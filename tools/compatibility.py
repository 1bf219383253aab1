"""docs/compatibility.md: what corp-onnx finds, prunes and proves on every test graph, and onnxsim's pruning beside it.

In: `tests/fixtures/manifest.json` and, for the last columns and the last section, `docs/onnxsim.json` (see
`compare_onnxsim.py`) and `docs/tensorrt.json` (see `tensorrt_builds.py`). Every unit of every graph that can be pruned
is cut to half its width with seeded random weights, which no lucky symmetry can survive, and the file goes through the
checks of `corp_onnx.checks.verify`. Exits with 1 where a check fails or a unit that the manifest expects was not found.

    .venv/bin/python tools/compatibility.py                       # writes docs/compatibility.md, about a minute
    .venv/bin/python tools/compatibility.py --only 'timm_vit_*'   # prints those rows
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt_builds

from corp_onnx._version import __version__
from corp_onnx.blocks import Attention, Blocks, Mlp, QkPair, SiteKey, VoPair, find_blocks
from corp_onnx.checks.verify import check_file, check_rewrite
from corp_onnx.errors import CorpOnnxError
from corp_onnx.graph import Graph, read_graph
from corp_onnx.graph.model import load_model
from corp_onnx.results import CheckResult, describe_environment
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.solve.schedule import most_merged
from corp_onnx.tokens.sites import MergeSites, MergeStep, TokenMetric, find_merge_sites
from corp_onnx.units import AttentionChange, MlpChange, list_units

ROOT = Path(__file__).resolve().parent.parent
FIXTURES, DOCS = ROOT / "tests" / "fixtures", ROOT / "docs"
KINDS = ("mlp", "qk", "vo")
N_IMAGES = 3
Changes = dict[SiteKey, MlpChange | AttentionChange]


@dataclass(frozen=True, slots=True)
class Row:
    """One graph. Counts are by kind; `refusal` says why the file was not taken at all."""

    entry: dict[str, Any]
    found: Counter[str]
    prunable: Counter[str]
    spelling: str
    checks: dict[str, CheckResult]
    mlp_parameters: int
    reasons: tuple[str, ...]
    refusal: str = ""
    merging: str = "-"
    merge_checks: tuple[CheckResult, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check that was run passed."""
        return all(c.passed for c in (*self.checks.values(), *self.merge_checks))


def main() -> int:
    """Every row, the table, and whether all is as the manifest expects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", help="print these rows instead of writing the page")
    args = parser.parse_args()
    entries = json.loads((FIXTURES / "manifest.json").read_text(encoding="utf-8"))["fixtures"]
    entries = [e for e in entries if not args.only or fnmatch(e["name"], args.only)]
    rows = [examine(entry) for entry in entries]
    page = render(rows, read_peer(DOCS / "onnxsim.json"))
    if args.only:
        print(page)
    else:
        (DOCS / "compatibility.md").write_text(page, encoding="utf-8")
    complaints = [text for row in rows for text in complain(row)]
    print("\n".join(complaints) or f"{len(rows)} graphs: all as expected", file=sys.stderr)
    return 1 if complaints else 0


# ---- one graph ------------------------------------------------------------------------------------------------------


def examine(entry: dict[str, Any]) -> Row:
    """Find, prune to half, check."""
    try:
        model = load_model(FIXTURES / entry["file"])
        graph = probe_graph(model)
    except CorpOnnxError as error:
        reason = str(error).partition(".onnx: ")[2] or str(error)
        return Row(entry, Counter(), Counter(), "", {}, 0, (), reason)
    blocks = find_blocks(graph)
    changes = halve_units(graph, blocks)
    prunable = count_prunable(blocks)
    found = prunable + Counter(s.kind for s in blocks.skipped)
    spelling = "; ".join(dict.fromkeys([*(u.spelling for u in blocks.attentions), *(u.spelling for u in blocks.mlps)]))
    checks = run_checks(graph, changes) if changes else {}
    sites = find_merge_sites(graph, blocks)
    steps = merge_some(graph, sites)
    merged = tuple(run_checks(graph, {}, steps).values()) if steps else ()
    merging = f"{len(sites.sites)} / {len(steps)} / {len(steps) if all(c.passed for c in merged) else 0}"
    reasons = tuple(dict.fromkeys([
        *(f"{s.kind.upper()}: {s.reason}" for s in blocks.skipped),
        *(f"tokens do not merge: {reason}" for _, reason in sites.skipped),
    ]))  # fmt: skip
    mlp_parameters = halved_mlp_parameters(graph, changes)
    return Row(entry, found, prunable, spelling, checks, mlp_parameters, reasons, "", merging, merged)


def merge_some(graph: Graph, sites: MergeSites) -> tuple[MergeStep, ...]:
    """Two tokens at every site, compared in random directions."""
    rng, steps = np.random.default_rng(0), list[MergeStep]()
    left = sites.n_tokens
    for site in sites.sites:
        n_merged = min(2, most_merged(left, sites.n_special))
        d_model = graph.dims(site.source)[2]
        directions, importance = rng.standard_normal((d_model, 8)), 0.1 * rng.standard_normal(d_model)
        metric = TokenMetric(directions.astype(np.float32), importance=importance.astype(np.float32))
        steps += [MergeStep(site, n_merged, metric)] if n_merged else []
        left -= n_merged
    return tuple(steps)


def count_prunable(blocks: Blocks) -> Counter[str]:
    """Units without a reason to skip them."""
    return Counter({kind: len(list_units(blocks, (kind,))) for kind in KINDS})


def halve_units(graph: Graph, blocks: Blocks) -> Changes:
    """Every unit at half its width with random weights."""
    rng = np.random.default_rng(0)
    changes: Changes = {unit.key: halve_mlp(graph, unit, rng) for unit in blocks.mlps}
    for unit in blocks.attentions:
        if isinstance(unit.qk, QkPair) or isinstance(unit.vo, VoPair):
            changes[unit.key] = halve_attention(graph, unit, rng)
    return changes


def halve_mlp(graph: Graph, unit: Mlp, rng: np.random.Generator) -> MlpChange:
    """Half of the channels in any order, and another second product."""
    kept_idx = rng.permutation(unit.d_hidden)[: max(1, unit.d_hidden // 2)]
    weight = unit.down.read_weight(graph).astype(np.float64)[:, kept_idx]
    scaled = weight * rng.uniform(0.5, 1.5, weight.shape)
    return MlpChange(unit, kept_idx, scaled, 0.1 * rng.standard_normal(unit.down.d_out))


def halve_attention(graph: Graph, unit: Attention, rng: np.random.Generator) -> AttentionChange:
    """Random maps of every head onto half of its dimensions."""

    def draw_map(d_head: int) -> np.ndarray:
        return rng.standard_normal((unit.n_heads, max(1, d_head // 2), d_head)) / np.sqrt(d_head)

    q_map = k_map = v_map = out_weight = out_bias = None
    if isinstance(unit.qk, QkPair):
        q_map, k_map = draw_map(unit.d_qk), draw_map(unit.d_qk)
    if isinstance(unit.vo, VoPair):
        v_map, linear = draw_map(unit.d_v), unit.vo.out.linear
        out_weight = 0.3 * rng.standard_normal((linear.d_out, v_map.shape[0] * v_map.shape[1]))
        stored = linear.read_bias(graph)
        out_bias = None if stored is None else stored.astype(np.float64) + 0.1 * rng.standard_normal(linear.d_out)
    return AttentionChange(unit, q_map, k_map, v_map, out_weight, out_bias)


def run_checks(graph: Graph, changes: Changes, merges: Sequence[MergeStep] = ()) -> dict[str, CheckResult]:
    """The checks of a pruned file by name; a crash on the way is a failed one."""
    feeds = random_feeds(graph.model, N_IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        try:
            rewrite = plan_rewrite(changes, merges=merges)
            models = rewrite.write(graph, Path(folder) / "pruned.onnx")
            checks = check_file(graph.model, models[-1], models[-1].path)
            checks += check_rewrite(graph, rewrite, models, feeds)
        except Exception as error:  # a row of a table: the next ones are wanted too
            checks = [CheckResult("crash", False, None, None, f"{type(error).__name__}: {error}".splitlines()[0])]
    return {c.name: c for c in checks}


def halved_mlp_parameters(graph: Graph, changes: Changes) -> int:
    """What goes when half of every MLP's channels go and nothing else: the measure for onnxsim."""
    halved = {key: change for key, change in changes.items() if isinstance(change, MlpChange)}
    if not halved:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        (pruned,) = plan_rewrite(halved).write(graph, Path(folder) / "halved.onnx")
        return graph.n_parameters - read_graph(pruned).n_parameters


def complain(row: Row) -> list[str]:
    """Failed checks, and units that the manifest expects and nobody found; more than expected is fine."""
    name, expect = row.entry["name"], row.entry["expect"]
    checks = (*row.checks.values(), *row.merge_checks)
    texts = [f"{name}: {c.name}: {c.detail}" for c in checks if not c.passed]
    if row.refusal or not expect["n_blocks"]:
        return texts
    for kind, key in zip(KINDS, ("mlp_prunable", "qk", "vo"), strict=True):
        if expect[key] and row.prunable[kind] < expect["n_blocks"]:
            texts.append(f"{name}: {row.prunable[kind]} {kind} of {expect['n_blocks']} blocks can be pruned")
    return texts


# ---- the page -------------------------------------------------------------------------------------------------------


def read_peer(path: Path) -> dict[str, Any]:
    """What `compare_onnxsim.py` wrote; empty without it."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


HEADER = """\
<!-- Generated by tools/compatibility.py from what compare_onnxsim.py and tensorrt_builds.py wrote; do not edit. -->
# Compatibility

Every graph of [tests/fixtures](../tests/fixtures/README.md): small random-weight models that the real libraries and
exporters wrote. `corp-onnx {version}`, onnxruntime {ort}, on the CPU.

**MLP, QK, VO**: units found / that can be pruned / pruned with every check passed. All of a graph are pruned at once to
half their width, with random weights.

**Identity**: the same surgery with nothing removed, against the dense graph. **NumPy**: every product that changed, run
by ONNX Runtime in the pruned graph, against NumPy in float64 on its own input. **Padded**: the outputs of the pruned
graph against the same solution at full width, padded with zeros. All three are the largest difference relative to the
largest value; allowed are 1e-4 in float32, 2e-2 in float16, 1e-1 in bfloat16.

**Merge**: blocks in which tokens can merge / two merged in each, compared in random directions / with every check
passed, the answers of a batch against those of one image among them. Why tokens do not merge is a note.

**onnxsim, MLP** is what `apply_structured_pruning(sparsity=0.5)` of onnxsim {peer} removes from the file as it stands
(as a share of what halving its MLPs removes), **after simplify** the same behind `onnxsim.simplify`, **heads** what
`apply_attention_head_pruning(sparsity=0.5)` removes of all parameters; a dash is nothing, without a message. It decides
by weight norms; its ridge refit is a call of its own. It has no pruning of head dimensions to compare with QK and VO.
"""

COLUMNS = (
    "graph", "model", "exporter", "opset", "spelling", "MLP", "QK", "VO", "merge", "identity", "NumPy", "padded",
    "notes", "onnxsim, MLP", "after simplify", "heads",
)  # fmt: skip


def render(rows: Sequence[Row], peer: dict[str, Any]) -> str:
    """The page: a summary, a table a library, the notes."""
    notes: dict[str, int] = {}
    versions = describe_environment("cpu").versions
    peer_version = peer["versions"]["onnxsim"] if peer else "(not run)"
    parts = [HEADER.format(version=__version__, ort=versions["onnxruntime"], peer=peer_version), summary(rows, peer)]
    for library in dict.fromkeys((r.entry["library"], r.entry["version"]) for r in rows):
        parts.append(f"## {' '.join(library).strip()}\n")
        lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
        here = [r for r in rows if (r.entry["library"], r.entry["version"]) == library]
        lines += [f"| {' | '.join(cells(row, peer, notes))} |" for row in here]
        parts.append("\n".join(lines) + "\n")
    parts.append("## Notes\n")
    parts.append("\n".join(f"{number}. {text}" for text, number in notes.items()) + "\n")
    parts.append(render_others(rows, peer))
    parts.append(tensorrt_builds.render(json.loads(tensorrt_builds.RECORD.read_text(encoding="utf-8"))))
    return "\n".join(part for part in parts if part)


def render_others(rows: Sequence[Row], peer: dict[str, Any]) -> str:
    """onnxsim on files that are no test graphs: whole models with their real weights."""
    names = [name for name in peer.get("files", {}) if name not in {r.entry["name"] for r in rows}]
    if not names:
        return ""
    ways = {"as_is": "as it stands", "simplified": "after simplify", "heads": "heads"}
    lines = [
        "## onnxsim on whole models\n",
        "Files of `corp-onnx export` with real weights, not in the repository: parameters before and after.\n",
        f"| file | {' | '.join(ways.values())} |",
        "|" + "---|" * (len(ways) + 1),
    ]
    for name in names:
        records = [peer["files"][name][way] for way in ways]
        found = [r.get("error") or f"{r['parameters_before']:,} to {r['parameters_after']:,}" for r in records]
        lines.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[Row], peer: dict[str, Any]) -> str:
    """The totals in a few lines."""
    found, prunable = Counter[str](), Counter[str]()
    for row in rows:
        found, prunable = found + row.found, prunable + row.prunable
    n_pruned = sum(row.passed and bool(row.checks) for row in rows)
    units = ", ".join(f"{prunable[k]} of {found[k]} {k.upper()}" for k in KINDS)
    n_refused = sum(bool(row.refusal) for row in rows)
    lines = [
        f"- {n_pruned} of {len(rows)} graphs are pruned and pass every check, {n_refused} are refused with a reason, "
        f"{sum(not r.checks and not r.refusal for r in rows)} with nothing to prune.",
        f"- {units} units can be pruned; every other one has its reason among the notes.",
        f"- Tokens merge in {sum(bool(r.merge_checks) for r in rows)} graphs, every check passed in "
        f"{sum(bool(r.merge_checks) and all(c.passed for c in r.merge_checks) for r in rows)}.",
    ]
    known = [r for r in rows if r.mlp_parameters and record_of(r, peer)]
    if known:
        removed = sum(removes(record_of(r, peer), "as_is") for r in known)
        after = sum(removes(record_of(r, peer), "simplified") for r in known)
        heads = sum(removes(record_of(r, peer), "heads") for r in known)
        broken = sum(breaks(r, record_of(r, peer)[way]) for r in known for way in ("as_is", "simplified", "heads"))
        lines.append(
            f"- Of the {len(known)} graphs with MLPs, onnxsim removes something from {removed} as they stand, from "
            f"{after} after its simplify, and heads from {heads}; {broken} of the files it wrote do not run in ONNX "
            "Runtime or have other output shapes."
        )
    return "\n".join(lines) + "\n"


def cells(row: Row, peer: dict[str, Any], notes: dict[str, int]) -> list[str]:
    """One row of the table; what needs words becomes a numbered note."""
    entry = row.entry
    texts = [*row.reasons]
    if row.refusal:
        texts.append(f"refused: {row.refusal}")
    texts += [f"FAILED {c.name}: {c.detail}" for c in (*row.checks.values(), *row.merge_checks) if not c.passed]
    numbers = [notes.setdefault(t.replace("|", "\\|"), len(notes) + 1) for t in texts]
    counts = [f"{row.found[k]} / {row.prunable[k]} / {row.prunable[k] if row.passed else 0}" for k in KINDS]
    errors = [number_of(row.checks.get(name)) for name in ("identity", "replay", "padding")]
    return [
        entry["name"], entry["model"], entry["exporter"], str(entry["opset"]), row.spelling or "-",
        *(["-"] * 3 if row.refusal else counts), row.merging, *errors, ", ".join(map(str, numbers)),
        *peer_cells(row, peer),
    ]  # fmt: skip


def number_of(check: CheckResult | None) -> str:
    """An error, bold where it is too large."""
    if check is None or check.difference is None:
        return "-"
    return f"{check.difference:.0e}" if check.passed else f"**{check.difference:.0e}**"


def record_of(row: Row, peer: dict[str, Any]) -> dict[str, Any]:
    """onnxsim's record of the same bytes; empty where there is none."""
    record = peer.get("files", {}).get(row.entry["name"], {})
    digest = hashlib.sha256((FIXTURES / row.entry["file"]).read_bytes()).hexdigest()
    return record if record.get("sha256") == digest else {}


def removes(record: dict[str, Any], way: str) -> bool:
    """Whether one way of onnxsim removed a parameter."""
    found = record[way]
    return "error" not in found and found["parameters_after"] < found["parameters_before"]


def breaks(row: Row, found: dict[str, Any]) -> bool:
    """Whether a file that ran does not any more, or gives other shapes."""
    return row.entry["runs"] and "error" not in found and not (found["runs"] and found["same_shapes"])


def peer_cells(row: Row, peer: dict[str, Any]) -> list[str]:
    """The three columns of onnxsim."""
    record = record_of(row, peer)
    return [peer_cell(record.get(way), row, way) for way in ("as_is", "simplified", "heads")]


def peer_cell(found: dict[str, Any] | None, row: Row, way: str) -> str:
    """What was removed; an error or a file that does not run says so."""
    if found is None:
        return "not run"
    if "error" in found:
        return found["error"].partition(":")[0]
    removed = found["parameters_before"] - found["parameters_after"]
    if removed <= 0:
        return "-"
    whole = row.mlp_parameters if way != "heads" and row.mlp_parameters else found["parameters_before"]
    share = f"{removed / whole:.0%}"
    if breaks(row, found):
        return f"{share}, {'other output shapes' if found['runs'] else 'does not run'}"
    return share


if __name__ == "__main__":
    sys.exit(main())
