"""Options by name -> settings: what the command line and the functions of the package make of the same words.

Enters names and values as a person gives them; leaves one of the settings classes. What options mean together, and
which of them contradict each other, stands here once; what a single one may be is said by the class (settings/).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from corp_onnx.errors import OptionError
from corp_onnx.settings import (
    DEFAULT_AGREEMENT,
    DEFAULT_THRESHOLD,
    METHODS,
    Budget,
    Fractions,
    Method,
    Preprocessing,
    PruneSettings,
    Threshold,
    WidthRule,
)

S = TypeVar("S")

BUDGETS = {
    "min_agreement": "agreement",
    "min_similarity": "similarity",
    "macs": "macs",
    "params": "params",
    "speedup": "speedup",
    "latency": "latency",
}
"""Kinds of budgets by the option that gives one."""

FRACTIONS = tuple(f.name for f in fields(Fractions))
SIZES = (*BUDGETS, *FRACTIONS, "allocate", "amp_threshold")
MERGING = ("merge", "merge_blocks", "merge_metric")

OF_METHOD, OF_RUN, OF_IMAGES = (
    tuple(f.name for f in fields(kind) if f.name not in besides)
    for kind, besides in ((Method, ("widths",)), (PruneSettings, ("method", "preprocessing")), (Preprocessing, ()))
)

MOST_NEAR = 3
"""Names that are offered for one that is not known."""


def fill_settings(kind: type[S], settings: S | None, options: Mapping[str, Any]) -> S:
    """The settings that were given, or those of a class with some fields by name.

    Raises:
        OptionError: both were given, or a name is no field; says which are near.
    """
    require_either(settings, options)
    if settings is not None:
        return settings
    kinds = {f.name: str(f.type) for f in fields(kind)}  # type: ignore[arg-type]
    require_known(options, kinds)
    return kind(**{k: Path(v) if isinstance(v, str) and "Path" in kinds[k] else v for k, v in options.items()})


def require_either(settings: object, options: Mapping[str, Any]) -> None:
    """Refuse settings as one value together with some of them by name."""
    if settings is not None and options:
        raise OptionError(
            f"settings were given as one value and also by name ({', '.join(options)}); give one or the other."
        )


def require_known(options: Collection[str], known: Collection[str]) -> None:
    """Refuse a name that is not known."""
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, MOST_NEAR, cutoff=0.5)
            offered = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}."
            raise OptionError(f"there is no option '{name}'; {offered}")


def choose_settings(settings: PruneSettings | None = None, **options: Any) -> PruneSettings:
    """How `prune` works, from its options by name; None is 'not given'.

    Args:
        settings: everything as one value, in place of options.
        options: `preset`; `min_agreement`, `min_similarity`, `macs`, `params`, `speedup`, `latency` (seconds, or as in
            `12ms`), `mlp`, `attn`, `allocate`, `amp_threshold`; every field of `Method` but `widths`, of
            `PruneSettings` but `method`, and of `Preprocessing`.

    Raises:
        OptionError: a name that is not known, a value out of range, or options that contradict each other.
    """
    given = {name: value for name, value in options.items() if value is not None}
    require_either(settings, given)
    if settings is not None:
        return settings
    require_known(given, ("preset", *SIZES, *OF_METHOD, *OF_RUN, *OF_IMAGES))
    of_method, of_run, of_images, sizes = (
        {name: given[name] for name in names if name in given} for names in (OF_METHOD, OF_RUN, OF_IMAGES, SIZES)
    )
    method = _choose_method(given.get("preset", next(iter(METHODS))), sizes, _as_tuples(of_method))
    return PruneSettings(method, **of_run, preprocessing=Preprocessing(**_as_tuples(of_images)))


def read_seconds(value: float | str, flag: str) -> float:
    """A time as a person types it: `12ms`, `0.5s`; a number alone is seconds.

    Raises:
        OptionError: it is no time.
    """
    text = str(value).strip().lower()
    for unit, seconds in (("ms", 1e-3), ("us", 1e-6), ("s", 1.0), ("", 1.0)):
        if text.endswith(unit):
            with suppress(ValueError):
                return float(text.removesuffix(unit)) * seconds
            break
    raise OptionError(f"{flag} is a time, as in 12ms or 0.5s; found {value}.")


def names_no_size(options: Mapping[str, Any]) -> bool:
    """Whether nothing that is given decides how small the model gets, so that the default agreement does."""
    given = {name for name, value in options.items() if value is not None}
    return not given & {*BUDGETS, *FRACTIONS} and options.get("allocate") != "amp" and options.get("preset") != "paper"


def _choose_method(preset: str, sizes: Mapping[str, Any], given: Mapping[str, Any]) -> Method:
    if preset not in METHODS:
        raise OptionError(f"--preset must be {' or '.join(METHODS)}; found {preset}.")
    if preset == "paper" and given.get("rank") == "obs":
        raise OptionError("--rank obs is not in the paper; leave out --preset paper, or rank by energy or magnitude.")
    widths = _choose_widths(preset, sizes)
    alone = {"units": ("mlp",)} if isinstance(widths, Threshold) else {}  # AMP prunes nothing else
    method = replace(METHODS[preset], **{**alone, **given, "widths": widths})
    _require_merge(given, method)
    return method


def _choose_widths(preset: str, sizes: Mapping[str, Any]) -> WidthRule:
    """The rule for widths that the options name together; a kind whose fraction was not named stays whole."""
    budgets = {kind: sizes[name] for name, kind in BUDGETS.items() if name in sizes}
    cut = {name: sizes[name] for name in FRACTIONS if name in sizes}
    allocate = sizes.get("allocate", "search")
    if len(budgets) > 1:
        raise OptionError(
            "--min-agreement, --min-similarity, --macs, --params, --speedup and --latency exclude each other; give one "
            "of them."
        )
    if allocate == "amp":
        if preset == "paper" or cut or budgets:
            raise OptionError(
                "--allocate amp takes widths from --amp-threshold alone: leave out --preset paper, --mlp, --attn, "
                "--macs and every other budget, or use --allocate search."
            )
        return Threshold(sizes.get("amp_threshold", DEFAULT_THRESHOLD))
    if "amp_threshold" in sizes:
        raise OptionError("--amp-threshold goes with --allocate amp; give both, or leave it out.")
    if budgets and preset == "paper":
        raise OptionError("the paper's method takes fractions: give --mlp and --attn, or leave out --preset paper.")
    if budgets and cut:
        raise OptionError("--mlp and --attn fix the widths and a budget searches them: give one or the other.")
    if cut:
        return Fractions(**cut)
    if preset == "paper":
        return METHODS[preset].widths
    ((kind, value),) = budgets.items() or (("promise", DEFAULT_AGREEMENT),)
    if kind == "latency":
        value = read_seconds(value, "--latency")
    return Budget(kind, value, allocate)  # type: ignore[arg-type]


def _require_merge(given: Mapping[str, Any], method: Method) -> None:
    """Refuse options of merging where nothing can merge."""
    named = set(MERGING) & set(given)
    if named and not method.merges and (named != {"merge"} or given["merge"] != "none"):
        raise OptionError(
            "tokens merge under a budget of MACs or a promise whose widths are searched: give --macs or "
            "--min-agreement, or leave out --merge, --merge-blocks and --merge-metric."
        )


def _as_tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Several values in whatever they came, one name where several may stand."""
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    if isinstance(found.get("units"), str):
        found["units"] = tuple(name.strip() for name in found["units"].split(",") if name.strip())
    return found
