"""Tables of inspect, prune and evaluate from results made up by hand; and no number is ever cut."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from corp_onnx.evaluate import Evaluation, Score
from corp_onnx.report.evaluation import print_evaluation
from corp_onnx.report.inspection import INSPECTION_LEGEND, print_inspection
from corp_onnx.report.pruning import PRUNING_LEGEND, TOKENS_LEGEND, WHOLE_LEGEND, print_pruning
from corp_onnx.report.terminal import make_table, open_console, print_table
from corp_onnx.results import (
    CalibrationData,
    CheckResult,
    DeadTokens,
    Environment,
    HeldOut,
    Inspection,
    MergeResult,
    Metric,
    ModelFacts,
    OutputScore,
    Promise,
    PruneResult,
    SkipFacts,
    StageTime,
    UnitFacts,
    UnitResult,
    UnitWidth,
)

DENSE = ModelFacts("dense.onnx", "0" * 64, 4_000_000, "float32", 1_000_000, 2_000_000_000, 17, None, "pytorch 2.13.0")
PRUNED = replace(DENSE, path="small.onnx", n_bytes=2_500_000, n_parameters=600_000, macs=1_000_000_000)
MLP = UnitFacts("blocks.0.mlp", "mlp", 0, 48, None, 17, "MatMul+gelu+MatMul", 4_800, 81_600, 0.4, 0.25, True)
QK = UnitFacts("blocks.0.attn.qk", "qk", 0, 10, 2, 17, "fused qkv", 840, 34_000, 0.1, 0.125, True)
ENVIRONMENT = Environment("0.1", "3.12", "Linux x86_64", "cpu", None, {})


def inspection(**changes: object) -> Inspection:
    return replace(Inspection(DENSE, 2, (MLP, QK), ()), **changes)


class TestInspection:
    def test_a_model_its_units_and_their_sum(self, printed) -> None:
        print_inspection(inspection())
        assert printed() == [
            "dense.onnx: 2.0000 GMACs, 1,000,000 parameters, 4.0 MB, float32, opset 17, dynamic batch, "
            "from pytorch 2.13.0",
            "unit width tokens parameters MACs of MACs",
            "blocks.0.mlp 48 17 4,800 0.1 M 25.0%",
            "blocks.0.attn.qk 2 x 10 17 840 0.0 M 12.5%",
            INSPECTION_LEGEND,
            "spelled MatMul+gelu+MatMul: 1 MLP",
            "spelled fused qkv: 1 QK",
            "2 blocks; can be pruned: 1 MLP, 1 QK, 0 VO, 37.5% of the MACs",
        ]

    def test_a_fixed_batch_and_an_exporter_without_a_name(self, printed) -> None:
        print_inspection(inspection(model=replace(DENSE, batch=8, producer="")))
        assert printed()[0].endswith(", batch 8, from an unnamed exporter")

    def test_a_unit_that_stays_says_why_and_does_not_count(self, printed) -> None:
        stays = replace(QK, prunable=False, reason="rotary embedding")
        print_inspection(inspection(units=(MLP, stays)))
        lines = printed()
        assert lines[3] == "blocks.0.attn.qk 2 x 10 17 840 0.0 M 12.5%"
        assert lines[5:7] == [
            "spelled MatMul+gelu+MatMul: 1 MLP", "stays whole, rotary embedding: blocks.0.attn.qk"
        ]  # fmt: skip
        assert lines[7] == "2 blocks; can be pruned: 1 MLP, 0 QK, 0 VO, 25.0% of the MACs"

    @pytest.mark.parametrize(("kind", "title"), [("mlp", "MLP"), ("qk", "QK"), ("vo", "VO")])
    def test_what_was_not_recognised_is_named(self, printed, kind, title) -> None:
        print_inspection(inspection(skipped=(SkipFacts(kind, "/blocks.1/MatMul", "no second product"),)))
        assert printed()[7] == f"skipped {title} at /blocks.1/MatMul: no second product"

    def test_a_model_without_units_has_no_table(self, printed) -> None:
        print_inspection(inspection(n_blocks=0, units=()))
        assert printed()[1:] == ["0 blocks; can be pruned: 0 MLP, 0 QK, 0 VO, 0.0% of the MACs"]

    def test_tokens_that_nobody_reads(self, printed) -> None:
        print_inspection(inspection(dead_tokens=DeadTokens(17, 1, 137_800_000, 0.0689)))
        assert printed()[-1] == (
            "the outputs read 1 of the last block's 17 tokens: prune leaves out what only the others need there, "
            "6.9% of the MACs"
        )


def unit(kind: str, block: int, before: int, after: int, error: float = 0.125, alone: float = 0.5) -> UnitResult:
    key = f"blocks.{block}.{'mlp' if kind == 'mlp' else f'attn.{kind}'}"
    return UnitResult(key, kind, block, before, after, error, alone, 1.0)


LOGITS = OutputScore(
    "logits", "classify", "its name", (10,), True,
    (Metric("agreement", 0.953125, 0.871, 0.984), Metric("kl", 0.10349, 0.08, 0.13), Metric("relative_error", 0.2)),
)  # fmt: skip
PROMISE = Promise("agreement", 0.953125, 0.871, 0.984, 0.95, 64)


def pruning(**changes: object) -> PruneResult:
    held = HeldOut(64, (LOGITS,), PROMISE, 0.10349, (0.287, 0.3, 0.271))
    checks = (CheckResult("structure", True, None, None, ""), CheckResult("replay", True, 1e-6, 1e-4, ""))
    base = PruneResult(
        dense=DENSE, pruned=PRUNED, settings={},
        calibration=CalibrationData("photos", "0" * 64, 256, 0, 64, 17, 0, None, ()),
        units=(unit("mlp", 0, 48, 24),), n_units_found=3, left_whole=(), skipped=(), merges=(), held_out=held,
        checks=checks, notes=(), warnings=("said elsewhere",),
        stages=(StageTime("solve", 20.3), StageTime("verify", 16.4)),
        peak_memory_bytes=None, expected_memory_bytes=0, environment=ENVIRONMENT, report_path="small.report.json",
    )  # fmt: skip
    return replace(base, **changes)


class TestPruning:
    def test_widths_sizes_answers_and_where_it_lies(self, printed) -> None:
        print_pruning(pruning())
        assert printed() == [
            "MLP error",
            "block of 48 (only cut)",
            "0 24 12% (50%)",
            PRUNING_LEGEND,
            "dense pruned kept",
            "parameters 1,000,000 600,000 60.0%",
            "MACs 2.0000 G 1.0000 G 50.0%",
            "file 4.0 MB 2.5 MB 62.5%",
            "on 64 held-back images: agreement 95.3% [87.1, 98.4], KL 0.1035, error 20.0%",
            "residual stream off by 28.7% after the first block and 27.1% after the last",
            "agreement: images (tokens, pixels) whose first answer is the reference's; KL: how far the probabilities "
            "moved, in nats; error: distance over length of all answers as one vector; residual stream: what a block "
            "hands on to the next",
            "promise: of other images like these at least 87.1% of the answers stay (the lower end of a 95% interval; "
            "measured 95.3% on 64 images that chose nothing).",
            "checks passed: structure, replay; 37 s",
            "pruned 1 of 3 units -> small.onnx",
            "report: small.report.json",
        ]

    def test_tokens_that_merge(self, printed) -> None:
        print_pruning(pruning(merges=(MergeResult(1, 17, 15), MergeResult(3, 15, 10))))
        assert "similar tokens merge behind the attention: 17 -> 15 in block 1, 15 -> 10 in block 3." in printed()

    def test_tokens_have_a_column_behind_every_block(self, printed) -> None:
        units = tuple(unit("mlp", i, 48, 24) for i in (0, 1, 3))
        print_pruning(pruning(units=units, merges=(MergeResult(1, 17, 15), MergeResult(2, 15, 10))))
        assert printed()[:7] == [
            "MLP error tokens",
            "block of 48 (only cut) of 17",
            "0 24 12% (50%) 17",
            "1 24 12% (50%) 15",
            "2 - 10",
            "3 24 12% (50%) 10",
            PRUNING_LEGEND + WHOLE_LEGEND + TOKENS_LEGEND,
        ]

    def test_a_block_without_a_unit_of_a_kind_has_a_dash(self, printed) -> None:
        units = (unit("vo", 2, 10, 8), unit("mlp", 10, 48, 24), unit("qk", 2, 10, 4, 0.01, 0.02))
        print_pruning(pruning(units=units))
        assert printed()[:4] == [
            "MLP error QK error VO error",
            "block of 48 (only cut) of 10 (only cut) of 10 (only cut)",
            "2 - 4 1.0% (2.0%) 8 12% (50%)",
            "10 24 12% (50%) - -",
        ]

    def test_where_blocks_differ_in_width_each_says_its_own(self, printed) -> None:
        print_pruning(pruning(units=(unit("mlp", 0, 48, 24), unit("mlp", 1, 96, 24))))
        assert printed()[:4] == [
            "error", "block MLP (only cut)", "0 48 -> 24 12% (50%)", "1 96 -> 24 12% (50%)"
        ]  # fmt: skip

    def test_a_fourth_kind_has_a_table_of_its_own(self, printed) -> None:
        units = tuple(unit(kind, 0, 10, 4) for kind in ("mlp", "heads", "qk", "vo"))
        print_pruning(pruning(units=units, merges=(MergeResult(0, 17, 15),)))
        lines = printed()
        assert lines[1] == "block of 10 (only cut) of 10 (only cut) of 10 (only cut) of 17"
        assert lines[3:7] == ["VO error", "block of 10 (only cut)", "0 4 12% (50%)", PRUNING_LEGEND + TOKENS_LEGEND]

    @pytest.mark.parametrize("share", [0.0004, 0.09949, 0.0995, 0.999, 1.5])
    def test_every_row_fits_80_columns(self, capsys, share: float) -> None:
        """Of a model with every kind of unit, large ones, and tokens that merge."""
        sizes = {"mlp": (12288, 12280), "heads": (48, 47), "qk": (128, 120), "vo": (128, 120)}
        units = tuple(unit(k, b, *sizes[k], share, share) for b in (0, 47) for k in sizes)
        print_pruning(pruning(units=units, merges=(MergeResult(7, 1025, 1000),)))
        lines = capsys.readouterr().out.splitlines()
        end = next(i for i, line in enumerate(lines) if line.startswith("error:"))
        assert end == 12
        assert all(len(line) <= 80 for line in lines[:end]), lines

    def test_without_a_unit_there_is_no_table_of_units(self, printed) -> None:
        """Where leaving out unread tokens meets the budget alone."""
        print_pruning(pruning(units=()))
        lines = printed()
        assert lines[0] == "dense pruned kept"
        assert "pruned 0 of 3 units -> small.onnx" in lines

    def test_a_unit_of_unchanged_width_is_not_counted_and_those_left_whole_are_named(self, printed) -> None:
        units = (unit("mlp", 0, 48, 48), unit("qk", 0, 10, 8))
        print_pruning(pruning(units=units, left_whole=("blocks.1.mlp", "blocks.1.attn.vo")))
        assert printed()[-2] == "pruned 1 of 3 units (left whole: blocks.1.mlp, blocks.1.attn.vo) -> small.onnx"

    def test_many_that_were_left_whole_are_counted(self, printed) -> None:
        """Seventy names of a ViT-g are a wall; the report says which they are."""
        keys = [f"blocks.{block}.{part}" for block in range(4) for part in ("mlp", "attn.qk")]
        network = tuple(UnitWidth(key, "mlp" if "mlp" in key else "qk", int(key[7]), 48, 48) for key in keys)
        print_pruning(pruning(left_whole=tuple(keys[:7]), network=network))
        assert printed()[-2] == "pruned 1 of 3 units (left whole: 4 MLP, 3 QK) -> small.onnx"

    def test_what_was_skipped_then_what_is_to_be_noted(self, printed) -> None:
        skip = SkipFacts("vo", "/blocks.1/MatMul", "a gate multiplies the heads' outputs")
        print_pruning(pruning(skipped=(skip,), notes=("one.", "two.")))
        lines = printed()
        assert lines[8:11] == [
            "skipped VO at /blocks.1/MatMul: a gate multiplies the heads' outputs", "one.", "two."
        ]  # fmt: skip
        assert not any("said elsewhere" in line for line in lines)  # warnings go to stderr, where they come up

    def test_what_is_no_class_is_told_as_what_it_is(self, printed) -> None:
        cosine = (Metric("cosine", 0.98765, 0.975, 0.99), Metric("cosine_p1", 0.9), Metric("relative_error", 0.15))
        pooled = OutputScore("pooled", "embed", "its name", (384,), True, cosine)
        promise = Promise("cosine", 0.98765, 0.975, 0.99, 0.95, 64, 0.98, "--min-similarity 0.98 is not proven.")
        held = HeldOut(64, (pooled,), promise, 0.0123, ())
        print_pruning(pruning(held_out=held))
        lines = printed()
        legend = next(line for line in lines if line.startswith("cosine: of the vector"))
        lines.remove(legend)
        assert lines[8:11] == [
            "on 64 held-back images: cosine 0.9877 [0.9750, 0.9900], worst 1% 0.9000, error 15.0%",
            "promise: of other images like these at least a cosine of 0.975 (the lower end of a 95% interval; measured "
            "0.9877 on 64 images that chose nothing).",
            "--min-similarity 0.98 is not proven.",
        ]

    def test_every_output_has_a_line(self, printed) -> None:
        other = replace(LOGITS, output="logits_dist")
        print_pruning(pruning(held_out=replace(pruning().held_out, outputs=(LOGITS, other))))
        assert printed()[8:11] == [
            "on 64 held-back images:",
            "logits (classify): agreement 95.3% [87.1, 98.4], KL 0.1035, error 20.0%",
            "logits_dist (classify): agreement 95.3% [87.1, 98.4], KL 0.1035, error 20.0%",
        ]

    def test_one_image_promises_nothing(self, printed) -> None:
        promise = Promise("agreement", 1.0, None, None, 0.95, 1)
        print_pruning(pruning(held_out=replace(pruning().held_out, promise=promise)))
        assert "nothing can be promised from one held-back image." in printed()


def scored(model: str, *metrics: Metric, difference: Metric | None = None, output: str = "logits") -> Score:
    return Score(model, 400, None, (OutputScore(output, "classify", "its name", (10,), True, metrics),), difference)


FULL = scored(
    "small.onnx", Metric("top1", 0.9325, 0.903, 0.953), Metric("top5", 0.995, 0.98, 0.999),
    Metric("agreement", 0.9425, 0.915, 0.961), Metric("kl", 0.10149, 0.08, 0.12), Metric("relative_error", 0.297),
    difference=Metric("top1_difference", -0.0425, -0.065, -0.02),
)  # fmt: skip


def evaluation(*scores: Score, baseline: Score | None = None) -> Evaluation:
    return Evaluation(scores, baseline, 400, (), "0" * 64, "CPUExecutionProvider")


class TestEvaluation:
    HEAD = "model top-1 top-5 agreement KL error"
    LAST = "400 images, CPUExecutionProvider; in brackets: 95% intervals"

    def test_every_figure_its_interval_and_what_it_means(self, printed) -> None:
        print_evaluation(evaluation(FULL))
        assert printed() == [
            self.HEAD,
            "small.onnx 93.2% 99.5% 94.2% 0.1015 29.7%",
            "[90.3, 95.3] [91.5, 96.1]",
            "small.onnx: top-1 -4.25% against the reference, -6.50% to -2.00%",
            "agreement: images (tokens, pixels) whose first answer is the reference's",
            "KL: how far the probabilities moved, in nats",
            "error: distance over length of all answers as one vector",
            self.LAST,
        ]

    def test_what_is_not_defined_is_a_dash(self, printed) -> None:
        print_evaluation(evaluation(scored("text.onnx"), FULL))
        assert printed()[1:3] == ["text.onnx - - - - -", "small.onnx 93.2% 99.5% 94.2% 0.1015 29.7%"]

    def test_several_outputs_have_a_table_each(self, printed) -> None:
        both = replace(FULL, outputs=(*FULL.outputs, *scored("small.onnx", Metric("cosine", 0.9), output="x").outputs))
        print_evaluation(evaluation(both))
        lines = printed()
        assert lines[0] == "output 'logits' (classify)"
        assert lines[4:7] == ["output 'x' (classify)", "model cosine", "small.onnx 0.9000"]

    def test_long_names_leave_80_columns_to_the_figures(self, capsys) -> None:
        names = ("cosine", "cosine_p1", "nn_agreement", "overlap_at_10", "cross_agreement", "relative_error")
        figures = [Metric(name, 0.95, 0.9, 0.99) for name in names]
        folder = "a/folder/with/a/long/name/of/its/own"
        print_evaluation(evaluation(*(scored(f"{folder}/{m}.onnx", *figures) for m in ("dense", "small"))))
        table = capsys.readouterr().out.split("cosine: ")[0].splitlines()
        assert max(map(len, table)) <= 80
        assert any(line.startswith("small.onnx ") for line in table)

    def test_what_outputs_are_taken_for_is_said(self, printed) -> None:
        note = "output 'y' is taken for an embedding of 64 numbers (its name)."
        print_evaluation(replace(evaluation(FULL), notes=(note,)))
        assert printed()[-1] == note

    def test_the_reference_stands_first_and_once(self, printed) -> None:
        dense = scored("dense.onnx", Metric("top1", 0.975))
        print_evaluation(evaluation(FULL, baseline=dense))
        assert [line.split()[0] for line in printed()[1:3]] == ["dense.onnx", "small.onnx"]
        print_evaluation(evaluation(FULL, dense, baseline=dense))
        rows = [line.split()[0] for line in printed() if " - " in line or "93.2%" in line]
        assert rows == ["small.onnx", "dense.onnx"]


class TestPaper:
    NUMBERS = ("1,234,567,890", "12.34 (56.78 - 90.12)", "1" * 40)

    @pytest.mark.parametrize("kind", ["xterm", "dumb", "unknown"])
    def test_a_narrow_terminal_cuts_no_number(self, printed, narrow, kind) -> None:
        narrow(kind)
        table = make_table("model", "a long head", "b", "c")
        table.add_row("a/model.onnx", *self.NUMBERS)
        print_table(open_console(), table)
        text = "\n".join(printed())
        for whole in ("a/model.onnx", "a long head", *self.NUMBERS):
            assert whole in text

    @pytest.mark.parametrize("kind", ["xterm", "dumb"])
    def test_text_of_many_words_is_broken_between_them(self, printed, narrow, kind) -> None:
        narrow(kind)
        print_inspection(inspection(units=(replace(QK, prunable=False, reason="a norm sits between both"),)))
        text = "\n".join(printed())
        for word in ("blocks.0.attn.qk", "stays", "between", "both", "2 x 10", "17", "840", "0.0 M", "12.5%"):
            assert word in text

    @settings(max_examples=60, deadline=None)
    @given(
        name=st.text("abc/", min_size=1, max_size=40),
        words=st.lists(st.text("abc/", min_size=1, max_size=9), min_size=1, max_size=12),
        numbers=st.lists(st.integers(0, 10**30), min_size=1, max_size=8),
        width=st.integers(1, 100),
    )
    def test_whatever_the_width_every_number_and_word_is_whole(self, name, words, numbers, width) -> None:
        """A long name beside words that may be broken: where rich has to share, it shares unevenly."""
        table = make_table("a", "b", *("n" for _ in numbers), left=2)
        table.add_row(name, " ".join(words), *map(str, numbers))
        paper = io.StringIO()
        print_table(Console(file=paper, width=width, height=25, highlight=False), table)
        found = paper.getvalue().split()
        assert set(map(str, numbers)) <= set(found)
        assert {name, *words} <= set(found)

    def test_a_table_does_not_widen_what_follows(self, narrow) -> None:
        narrow("xterm")
        console = open_console()
        print_table(console, make_table("x" * 50))
        assert console.width == 30

    def test_paper_without_a_terminal_is_80_columns_wide_and_sentences_are_not_broken(self, capsys) -> None:
        assert open_console().width == 80
        print_pruning(pruning(notes=("a note " * 40,)))
        assert "a note " * 40 in capsys.readouterr().out

    def test_brackets_and_colons_of_a_path_are_printed_as_they_are(self, printed) -> None:
        path = "[red]m/:smile:/v[2].onnx"
        print_evaluation(evaluation(replace(FULL, model=path)))
        assert printed()[1].startswith(f"{path} ")
        print_pruning(pruning(pruned=replace(PRUNED, path=path)))
        assert printed()[-2].endswith(f"-> {path}")


def test_what_a_terminal_would_obey_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console, table = open_console(), make_table("unit\x1b[1m", "width")
    table.add_row("\x1b[2Jfirst\r", "7")
    console.print("a name:\x1b]0;title\x07\nsecond", soft_wrap=True)
    print_table(console, table)
    out = capsys.readouterr().out
    assert "a name:]0;title second\n" in out
    assert "[2Jfirst" in out
    assert not set("\x1b\x07\r") & set(out)
