"""Progress and warnings on stderr: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from corp_onnx.errors import clean_text
from corp_onnx.images.recipe import FILTERS, Fit
from corp_onnx.settings import Preprocessing

PLAIN_SECONDS = 10.0
"""Without a terminal, a line this often."""

THINGS = {"probe": "units", "refit": "units", "bench": "rounds", "engine": "steps"}
"""What stages count, by their first word; images where it is not here."""


class _Rate(ProgressColumn):
    """Images or units in a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {_counted(task.description)}/s" if task.speed else "")


def _counted(stage: str) -> str:
    """What a stage counts."""
    return THINGS.get(stage.split()[0].rstrip(":"), "images")


@contextmanager
def show_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, images or units done, and in all) that shows where a run is."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            tasks: dict[str, int] = {}

            def draw(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total)
                bars.update(tasks[stage], completed=done)  # type: ignore[arg-type]

            yield draw
        return
    started: dict[str, tuple[float, int]] = {}  # when the first images were done, and how many
    said: dict[str, float] = {}

    def say(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage in started and done <= started[stage][1]:  # the stage begins again
            del started[stage]
            said.pop(stage, None)
        start, first = started.setdefault(stage, (now, done))
        if now - said.get(stage, start) >= PLAIN_SECONDS or (done >= total and now - start > PLAIN_SECONDS):
            said[stage] = now
            rate = (done - first) / (now - start)
            left = f", {(total - done) / rate:.0f} s left" if done < total else ""
            things = _counted(stage)
            click.echo(f"{stage}: {done}/{total} {things}, {rate:.1f} {things}/s{left}", err=True)

    yield say


def warn(sentences: Sequence[str]) -> None:
    """Warnings, one line each."""
    for sentence in sentences:
        click.echo(f"warning: {clean_text(sentence)}", err=True)


def parse_numbers(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """A comma-separated list of numbers, as in `--mean 0.5,0.5,0.5`."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected numbers separated by commas, found {value!r}.") from error


def preprocessing_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that replace parts of a model's preprocessing recipe; the command gets them as `preprocessing`."""

    @functools.wraps(command)
    def gathered(
        *,
        resize: int | None,
        crop_pct: float | None,
        interpolation: str | None,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        fit: str | None,
        fill: tuple[float, ...] | None,
        preprocessor: Path | None,
        **others: Any,
    ) -> None:
        colour = None if fill is None else tuple(int(v) if v.is_integer() else -1 for v in fill)
        file = None if preprocessor is None else str(preprocessor)
        command(preprocessing=Preprocessing(resize, crop_pct, interpolation, mean, std, fit, colour, file), **others)

    filters = click.Choice(list(FILTERS))
    of_model = "[default: the model's"
    numbers = {"callback": parse_numbers, "metavar": "R,G,B"}
    options = (
        click.option("--fill", **numbers, help=f"Colour of padding, 0..255.  {of_model}, else black]"),
        click.option(
            "--fit",
            type=click.Choice(get_args(Fit)),
            help="Cover the size and crop, squash to it, or fit inside and pad; without --resize and --crop-pct "
            f"nothing is cropped by the last two.  {of_model}, else cover]",
        ),
        click.option("--std", **numbers, help=f"Divides pixels after the mean.  {of_model}]"),
        click.option("--mean", **numbers, help=f"Subtracted from pixels in 0..1.  {of_model}]"),
        click.option("--interpolation", type=filters, help=f"Resize filter.  {of_model}, else bicubic]"),
        click.option("--crop-pct", type=float, metavar="F", help=f"Share that the crop keeps.  {of_model}, else 0.9]"),
        click.option(
            "--resize",
            type=int,
            metavar="PX",
            help="Side before the crop: short, both or long, by --fit.  [default: size / crop-pct]",
        ),
        click.option(
            "--preprocessor",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Hugging Face's preprocessor_config.json or timm's config.json.  [default: the model's "
            "metadata, else such a file beside it]",
        ),
    )
    for option in options:
        gathered = option(gathered)
    return gathered
