"""How long the parts of a model take at every width, as values, and their file.

Enters measured seconds, or a file of such; leaves `Times`, which the search pays with (search/problem.py). A table
belongs to a place: a machine, a runtime, a batch and a number of threads. It says nothing of weights, so models of the
same shape share it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from corp_onnx.errors import OptionError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where times were measured: the machine, the provider with its version, images at a time, threads (None: all)."""

    machine: str
    provider: str
    runtime: str
    batch: int
    threads: int | None

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.provider} of {self.runtime}, batch {self.batch}{threads}, {self.machine}"


@dataclass(frozen=True, slots=True)
class WidthTimes:
    """Seconds of a unit's site at some of its widths, ascending, the rest of the site whole; the last is full."""

    widths: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.seconds) or any(np.diff(self.widths) <= 0):
            raise ValueError("expected ascending widths with seconds each")
        if not (min(self.widths) > 0 and all(0 <= s < float("inf") for s in self.seconds)):
            raise ValueError("expected widths above zero and finite seconds")

    def trace(self) -> Float[np.ndarray, " full+1"]:
        """Seconds at 0..full: never falling, so that noise is not taken for a bargain; nothing left takes none."""
        from scipy.optimize import isotonic_regression  # 0.2 s that only budgets of time shall wait for

        rising = isotonic_regression(np.array(self.seconds)).x
        curve = np.interp(np.arange(self.widths[-1] + 1), self.widths, rising)
        curve[0] = 0.0
        return curve


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """How long a model and its parts take, in seconds of a batch.

    Attributes:
        dense: of the model as it is.
        whole: of every unit at full width, without the tokens that nobody reads.
        merge: of one step that merges tokens, whatever it saves behind it.
        token_gain: of the time that tokens which merge would save, were a site faster as its MACs are fewer, the part
            that they do save.
        units: of every unit's site at its widths, by the unit's key as text.
    """

    place: Place
    dense: float
    whole: float
    merge: float
    token_gain: float
    units: Mapping[str, WidthTimes]

    def to_json(self) -> str:
        """The table as a file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"


def read_times(path: Path, widths: Mapping[str, int]) -> Times:
    """A table from its file.

    Args:
        widths: full widths of the model's units by their keys: the table has to be of such a model.

    Raises:
        OptionError: the file is no table, or one of another model.
    """
    try:
        times = _parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OptionError(f"--times {path}: is no table of times that prune wrote; give another file.") from error
    found = {key: unit.widths[-1] for key, unit in times.units.items()}
    missing = [key for key, width in widths.items() if found.get(key) != width]
    if missing:
        raise OptionError(
            f"--times {path}: is of another model or of other --units: it does not know {missing[0]} with "
            f"{widths[missing[0]]} channels. Give a file that does not exist, and it is measured."
        )
    return times


def _parse(table: dict[str, Any]) -> Times:
    if table["schema"] != SCHEMA:
        raise ValueError("another schema")
    units = {key: WidthTimes(tuple(of["widths"]), tuple(of["seconds"])) for key, of in table["units"].items()}
    dense, whole, merge, gain = (float(table[name]) for name in ("dense", "whole", "merge", "token_gain"))
    if not (dense > 0 and all(0 <= number < float("inf") for number in (dense, whole, merge, gain))):
        raise ValueError("seconds out of range")
    return Times(Place(**table["place"]), dense, whole, merge, gain, units)
