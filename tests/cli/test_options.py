"""Options that are fields of a settings class: every field is one, its text says the default, and what is left out."""

# ruff: noqa: RUF009 (`option` gives a dataclass field with its help, as in settings/)
from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import probed
from samples import OPERATOR, fixture_path, write_photos

from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.data import HELD_OUT_FRACTION
from corp_onnx.cli import main
from corp_onnx.cli import prune as prune_module
from corp_onnx.cli.main import cli
from corp_onnx.cli.options import GroupedCommand, grouped, settings_options
from corp_onnx.errors import OptionError
from corp_onnx.images import open_images, split_holdout
from corp_onnx.images.recipe import Recipe
from corp_onnx.options import choose_settings
from corp_onnx.settings import (
    BEST,
    METHODS,
    PAPER,
    Budget,
    Fractions,
    Method,
    PruneSettings,
    Rank,
    Threshold,
    option,
)
from corp_onnx.units import KINDS, list_units

Size = Literal["small", "large"]


@dataclass(frozen=True)
class Coat:
    """A settings class with a field of every kind that there is."""

    size: Size = option("small", "How wide.")
    length: float = option(1.5, "How long.", metavar="M")
    buttons: int = option(3, "How many.", minimum=1)
    pockets: int | None = option(None, "Or none.  [default: none]", flag="n-pockets", minimum=0)
    lined: bool = option(True, "Whether lined.")
    dyed: bool = option(True, "Leave it white.", off="--undyed")
    colours: tuple[str, ...] = option(("red", "blue"), "Which.", metavar="NAMES")
    hidden: int = 7


WINTER, SUMMER = Coat(), Coat(size="large", lined=False, colours=("white",))


def run(*arguments: str, presets: Mapping[str, Coat] | None = None) -> tuple[int, dict[str, Any], str]:
    """(exit code, what the command got, its output)."""
    got: dict[str, Any] = {}

    @click.command(cls=GroupedCommand)
    @grouped("Else", "--name", help="Of the coat.")
    @settings_options(Coat, "given", "Coat", presets)
    def order(name: str | None, given: Mapping[str, Any]) -> None:
        got.update(given, **({"name": name} if name else {}))

    result = CliRunner().invoke(order, arguments, terminal_width=200, max_content_width=200)
    return result.exit_code, got, result.output


def help_of(**kwargs: Any) -> str:
    return " ".join(run("--help", **kwargs)[2].split())


class TestDerived:
    def test_what_is_not_given_is_not_there(self) -> None:
        assert run()[:2] == (0, {})
        assert run("--name", "a")[:2] == (0, {"name": "a"})

    @pytest.mark.parametrize(
        ("arguments", "field", "value"),
        [
            ("--size large", "size", "large"),
            ("--length 2", "length", 2.0),
            ("--buttons 1", "buttons", 1),
            ("--n-pockets 0", "pockets", 0),
            ("--lined", "lined", True),
            ("--no-lined", "lined", False),
            ("--undyed", "dyed", False),
            ("--colours green,grey", "colours", ("green", "grey")),
            ("--colours green,,grey,", "colours", ("green", "grey")),
        ],
    )
    def test_a_value_by_its_annotation(self, arguments: str, field: str, value: Any) -> None:
        code, got, output = run(*arguments.split())
        assert (code, got) == (0, {field: value}), output
        assert replace(WINTER, **got) == replace(WINTER, **{field: value})

    def test_names_may_be_parted_by_spaces_too(self) -> None:
        assert run("--colours", " green , grey ")[1] == {"colours": ("green", "grey")}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--size medium", "'medium' is not one of 'small', 'large'"),
            ("--length long", "'long' is not a valid float"),
            ("--buttons 0", "0 is not in the range x>=1"),
            ("--n-pockets -1", "-1 is not in the range x>=0"),
            ("--hidden 1", "No such option"),
            ("--dyed", "No such option"),
            ("--pockets 1", "No such option"),
        ],
    )
    def test_a_wrong_one_is_refused(self, arguments: str, message: str) -> None:
        code, got, output = run(*arguments.split())
        assert (code, got) == (2, {})
        assert message in output

    def test_help_and_default_of_every_field(self) -> None:
        text = help_of()
        for said in (
            "--size [small|large] How wide. [default: small]",
            "--length M How long. [default: 1.5]",
            "--buttons INTEGER RANGE How many. [default: 3] [x>=1]",
            "--n-pockets INTEGER RANGE Or none. [default: none] [x>=0]",
            "--lined / --no-lined Whether lined. [default: lined]",
            "--undyed Leave it white.",
            "--colours NAMES Which. [default: red,blue]",
        ):
            assert said in text, said
        assert "hidden" not in text

    def test_default_of_another_preset_where_it_differs(self) -> None:
        text = help_of(presets={"winter": WINTER, "summer": SUMMER})
        for said in (
            "How wide. [default: small; with summer large]",
            "How long. [default: 1.5]",
            "[default: lined; with summer no-lined]",
            "[default: red,blue; with summer white]",
        ):
            assert said in text, said

    def test_headings(self) -> None:
        """Group by group in the order in which they come; arguments have no row."""
        lines = run("--help")[2].splitlines()
        headings = [line for line in lines if line and not line.startswith(" ") and line.endswith(":")]
        assert headings == ["Else:", "Coat:", "Options:"]
        assert next(line for line in lines if "--help" in line).startswith("  --help")


def is_option(flag: str) -> bool:
    return any(flag in (*p.opts, *p.secondary_opts) for p in cli.commands["prune"].params)


class TestPrune:
    @pytest.mark.parametrize("settings", [Method, PruneSettings])
    def test_every_field_with_a_help_is_an_option(self, settings: type) -> None:
        kinds = get_type_hints(settings)
        shown = 0
        for f in dataclasses.fields(settings):
            if "help" not in f.metadata:
                continue
            flag = f.metadata["off"] or f"--{f.metadata['flag'] or f.name.replace('_', '-')}"
            assert is_option(flag), flag
            if kinds[f.name] is bool and not f.metadata["off"]:
                assert is_option(flag.replace("--", "--no-", 1))
            (parameter,) = [p for p in cli.commands["prune"].params if p.name == f.name]
            assert isinstance(parameter, click.Option)
            assert (parameter.help or "").startswith(f.metadata["help"])
            shown += 1
        assert shown >= 4
        assert {f.name for f in dataclasses.fields(Method) if "help" not in f.metadata} == {"widths"}
        assert {f.name for f in dataclasses.fields(PruneSettings) if "help" not in f.metadata} == {
            "method",
            "preprocessing",
        }

    def test_what_was_an_option_before_is_one_or_has_a_successor(self) -> None:
        before = (
            "calib output force preset min-agreement macs params mlp attn rank ridge no-compensation align equal-heads "
            "allocate amp-threshold qk refit no-refit weigh-tokens no-weigh-tokens favour-late no-favour-late trim "
            "no-trim images batch seed provider report resize crop-pct interpolation mean std json help"
        )
        assert all(is_option(f"--{flag}") for flag in before.split() if flag != "help")
        assert is_option("--units")
        assert not is_option("--vo")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model and photographs."""
    shutil.copy(fixture_path(OPERATOR), tmp_path / "vit.onnx")
    write_photos(tmp_path / "photos", 16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """The settings that a command line leads to; nothing is pruned."""
    found: list[PruneSettings] = []

    def stop(*_: Any, settings: PruneSettings, **__: Any) -> None:
        found.append(settings)
        raise OptionError("stopped.")

    monkeypatch.setattr(prune_module, "prune_model", stop)

    def read(*arguments: str) -> PruneSettings:
        found.clear()
        assert main(["prune", "vit.onnx", "--calib", "photos", *arguments]) == 2
        assert capfd.readouterr().err.endswith("corp-onnx: stopped.\n")
        return found[0]

    return read


class TestSettings:
    def test_presets(self, settings_of: Any) -> None:
        assert settings_of() == PruneSettings(BEST)
        assert settings_of("--preset", "best") == PruneSettings(BEST)
        assert settings_of("--preset", "paper") == PruneSettings(PAPER)
        assert set(METHODS) == {"best", "paper"}

    @pytest.mark.parametrize("preset", METHODS)
    @pytest.mark.parametrize(
        ("arguments", "fields"),
        [
            ("--units vo", {"units": ("vo",)}),
            ("--units qk,mlp", {"units": ("qk", "mlp")}),
            *((f"--rank {rank}", {"rank": rank}) for rank in get_args(Rank) if rank != "obs"),
            ("--qk low-rank", {"qk": "low-rank"}),
            ("--qk sylvester", {"qk": "sylvester"}),
            ("--ridge 0.01", {"ridge": 0.01}),
            ("--no-compensation", {"compensate": False}),
            ("--align 1", {"align": 1}),
            ("--no-refit", {"refit": False}),
            ("--refit", {"refit": True}),
            ("--no-weigh-tokens", {"weigh_tokens": False}),
            ("--no-favour-late", {"favour_late": False}),
            ("--no-trim", {"trim": False}),
            ("--trim --refit", {"trim": True, "refit": True}),
        ],
    )
    def test_what_is_given_and_the_preset_where_nothing_is(
        self, preset: str, arguments: str, fields: dict[str, Any], settings_of: Any
    ) -> None:
        found = settings_of("--preset", preset, *arguments.split())
        assert found == PruneSettings(replace(METHODS[preset], **fields))

    @pytest.mark.parametrize(
        ("option", "field", "others"),
        [
            ("--equal-heads", "equal_heads", (Fractions(0.5), Budget("macs", 0.5, "uniform"), Threshold())),
            ("--remove", "remove", (Fractions(0.5), Budget("macs", 0.5, "uniform"))),
        ],
    )
    def test_what_only_a_search_for_widths_can_heed(
        self, option: str, field: str, others: tuple[Any, ...], settings_of: Any
    ) -> None:
        assert settings_of(option) == PruneSettings(replace(BEST, **{field: True}))
        for widths in others:
            with pytest.raises(OptionError, match=f"^{option} goes with .*widths"):
                replace(BEST, widths=widths, **{field: True})

    @pytest.mark.parametrize(
        "given", [{"mlp": 0.5, "attn": 0.5}, {"macs": 0.5, "allocate": "uniform"}, {"units": ("mlp", "qk")}]
    )
    def test_target_that_wants_equal_heads(self, given: dict[str, Any], settings_of: Any) -> None:
        assert settings_of("--target", "tensorrt").method.ties_heads
        assert settings_of("--target", "tensorrt", "--units", "mlp", "--mlp", "0.5").method.target == "tensorrt"
        with pytest.raises(OptionError, match="--target tensorrt wants queries, keys and values of one width"):
            choose_settings(target="tensorrt", **given)

    def test_unknown_target(self) -> None:
        with pytest.raises(OptionError, match=r"--target must be generic, .* or web; found tpu"):
            replace(BEST, target="tpu")  # type: ignore[arg-type]

    def test_the_run(self, settings_of: Any) -> None:
        found = settings_of(*["--images", "9", "--batch", "2", "--seed", "4", "--provider", "cuda"])
        assert found == PruneSettings(BEST, n_images=9, batch_size=2, seed=4, provider="cuda")

    @pytest.mark.parametrize(
        ("arguments", "widths"),
        [
            ("--min-agreement 0.9", Budget("agreement", 0.9)),
            ("--macs 0.6", Budget("macs", 0.6)),
            ("--params 0.6 --allocate uniform", Budget("params", 0.6, "uniform")),
            ("--allocate uniform", Budget("promise", 0.9, "uniform")),
            ("--min-similarity 0.9", Budget("similarity", 0.9)),
            ("--mlp 0.3", Fractions(0.3, 0.0)),
            ("--attn 0.3", Fractions(0.0, 0.3)),
            ("--mlp 0.3 --attn 0.2", Fractions(0.3, 0.2)),
        ],
    )
    def test_widths(self, arguments: str, widths: Any, settings_of: Any) -> None:
        assert settings_of(*arguments.split()) == PruneSettings(replace(BEST, widths=widths))

    def test_fractions_of_the_paper(self, settings_of: Any) -> None:
        """A kind whose fraction was not named stays whole; with neither named both lose half."""
        assert settings_of("--preset", "paper").method.widths == Fractions(0.5, 0.5)
        assert settings_of("--preset", "paper", "--mlp", "0.3").method.widths == Fractions(0.3, 0.0)

    def test_a_threshold_prunes_mlps_alone_unless_others_are_named(self, settings_of: Any) -> None:
        method = settings_of("--allocate", "amp").method
        assert method == replace(BEST, units=("mlp",), widths=Threshold())
        found = settings_of(*["--allocate", "amp", "--amp-threshold", "0.1", "--units", "mlp,qk"]).method
        assert found == replace(BEST, units=("mlp", "qk"), widths=Threshold(0.1))


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            *((f"--allocate amp {other}", "--allocate amp takes widths from --amp-threshold alone") for other in
              ("--mlp 0.5", "--attn 0.5", "--macs 0.5", "--params 0.5", "--min-agreement 0.9", "--preset paper")),
            ("--allocate amp --amp-threshold 0", "--amp-threshold is a KL in nats and must be above 0; found 0."),
            ("--preset paper --params 0.5", "the paper's method takes fractions"),
            ("--preset paper --min-agreement 0.9", "the paper's method takes fractions"),
            ("--params 0.5 --attn 0.5", "--mlp and --attn fix the widths and a budget searches them"),
            ("--units tails", f"--units takes one or more of {', '.join(KINDS)}; found tails."),
            ("--units ,", f"--units takes one or more of {', '.join(KINDS)}; found none."),
            ("--units vo --mlp 0.5", "--mlp 0.5 and --attn 0 cut none of --units vo; name the kinds there that"),
        ],
    )  # fmt: skip
    def test_options_that_contradict_each_other(
        self, arguments: str, sentence: str, folder: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["prune", "vit.onnx", "--calib", "photos", *arguments.split()]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert sentence in err
        assert not list(folder.glob("*.pruned.onnx"))


class TestRuns:
    def test_units_are_those_that_were_named(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        arguments = ["--macs", "0.6", "--units", "vo", "--align", "2", "--json", "-o", "small.onnx"]
        assert main(["prune", "vit.onnx", "--calib", "photos", *arguments]) == 0
        found = json.loads(capfd.readouterr().out)
        assert {u["kind"] for u in found["units"]} == {"vo"}
        assert found["n_units_found"] == 2
        assert [c["name"] for c in found["checks"]][-2:] == ["batches", "expected"]
        assert (folder / "small.onnx").is_file()

    def test_weighted_rank(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """The rows that stay of every first product, by E[x_j^2] |U_j:| |W_:j| worked out here."""
        arguments = ["--preset", "paper", "--mlp", "0.25", "--rank", "weighted", "--json", "-o", "small.onnx"]
        assert main(["prune", "vit.onnx", "--calib", "photos", *arguments]) == 0
        assert json.loads(capfd.readouterr().out)["settings"]["method"]["rank"] == "weighted"
        graph, blocks = probed(OPERATOR)
        calibration, _ = split_holdout(open_images(folder / "photos", Recipe(size=(8, 8))), HELD_OUT_FRACTION, 0)
        units = list_units(blocks, ("mlp",))
        moments: Any = collect_moments(graph, units, calibration)
        stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(folder / "small.onnx").graph.initializer]
        for unit in units:
            site: Any = unit.site
            up, down = site.ups[0].linear.read_weight(graph), site.down.read_weight(graph)
            found = moments[str(unit.key)]
            score = np.diagonal(found.gram) / found.count * np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
            kept = up[np.sort(np.argsort(-score)[: unit.width * 3 // 4])]
            assert any(w.shape in (kept.shape, kept.T.shape) and (np.array_equal(w, kept) or np.array_equal(w.T, kept))
                       for w in stored)  # fmt: skip
