"""AMP (arXiv 2603.08100) on a real model, and this project at the sizes that AMP chooses.

For every threshold AMP finds the widths of the MLPs, ranked by its importance and without compensation. Beside it stand
the same widths and order with the compensation and the refit, the same widths with the OBS order, and the default
preset at the same MACs. Prints a Markdown table. Needs PyTorch (corp-onnx[taylor]).

    .venv/bin/python tools/amp_table.py ../shared/models/deit_tiny_patch16_224.onnx --thresholds 0.003 0.03 \\
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from study import Row, keep_tokens, open_study, print_rows, study_parser

from corp_onnx.calibrate import choose_units
from corp_onnx.gradients import collect_taylor
from corp_onnx.graph.probe import count_macs
from corp_onnx.refit.stream import find_walk
from corp_onnx.search.amp import search_widths
from corp_onnx.search.answers import draw_quiz
from corp_onnx.search.best import BestSettings, UnitChoice, solve_widths, trace_choices
from corp_onnx.search.plan import gather_changes
from corp_onnx.search.situation import Outcome, Situation
from corp_onnx.search.strategy import PROBE_IMAGES, BestSearch, prepare_search


def main() -> None:
    """Measure every row for every seed, print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.003, 0.03])
    args = parser.parse_args()

    study = open_study(args)
    rows: dict[str, list[Row]] = defaultdict(list)
    for seed in args.seeds:
        for name, at, outcome in _outcomes(study.draw(seed), args.thresholds):
            rows[name].append(study.measure(at, outcome))
            print(f"seed {seed}: {name}: {rows[name][-1]}", flush=True)
    print_rows(rows)


def _outcomes(situation: Situation, thresholds: list[float]) -> Iterator[tuple[str, Situation, Outcome]]:
    """(row name, situation, outcome): AMP's own rows leave no tokens out."""
    best = prepare_search(situation, BestSettings())
    whole = keep_tokens(best)
    plain = replace(whole.situation, units=choose_units(situation.blocks, qk=False))
    plain = replace(plain, importances=collect_taylor(plain.graph, plain.units.mlps, plain.calibration))
    quiz = draw_quiz(plain.graph.model, plain.calibration, PROBE_IMAGES, plain.seed)
    for threshold in thresholds:
        published = BestSettings(rank="taylor", allocate="amp", amp_threshold=threshold, compensate=False, refit=False)
        choices = _trace(plain, published)
        widths = search_widths(plain.graph, plain.blocks, choices, quiz, published)
        kinds = {
            "AMP as published": published,
            "its widths and order, compensated": replace(published, compensate=True),
            "its widths and order, refitted": replace(published, compensate=True, refit=True),
            "its widths, OBS order, refitted": replace(published, compensate=True, refit=True, rank="obs"),
        }
        for name, settings in kinds.items():
            plans = solve_widths(_trace(plain, settings), widths)
            search = BestSearch(plain, settings, choices, {}, find_walk(plain.blocks))
            yield f"{threshold:g}: {name}", plain, search.refit(Outcome(gather_changes(plans), plans))[0]
        macs = {u.key: u.macs / u.width for u in plain.unit_facts}
        total = count_macs(plain.graph).total
        kept = 1 - sum(macs[c.key] * (c.width - widths[c.key]) for c in choices) / total
        for which, search in (("best, all tokens computed", whole), ("best", best)):
            yield f"{threshold:g}: {which}, same MACs", search.situation, search.refitted("macs", kept)[0]


def _trace(situation: Situation, settings: BestSettings) -> tuple[UnitChoice, ...]:
    s = situation
    return trace_choices(s.graph, s.blocks, s.units, s.moments, settings, s.importances)


if __name__ == "__main__":
    main()
