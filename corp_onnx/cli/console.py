"""Progress and warnings on stderr: where the whole run is, on a terminal in one line with a bar, elsewhere in lines."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn
from rich.table import Column
from rich.text import Text

from corp_onnx.errors import clean_text
from corp_onnx.images.recipe import FILTERS, Fit
from corp_onnx.progress import Moment, Run
from corp_onnx.settings import Preprocessing

PLAIN_SECONDS = 10.0
"""Without a terminal, a line this often."""

BAR_COLUMNS = 16
"""Of the bar; with the longest phase and what is left, a line is 80 columns long."""


class _Watched(ProgressColumn):
    """Something of the last moment of a run: between two phases the one before still stands there."""

    def __init__(self, run: Run, describe: Callable[[Moment], str], column: Column) -> None:
        super().__init__(column)
        self.run, self.describe = run, describe
        self.last: Moment | None = None

    def render(self, task: Task) -> Text:
        self.last = self.run.moment or self.last
        if self.last is None:
            return Text("")
        task.completed = self.last.share or 0.0
        return Text(self.describe(self.last))


def describe_phase(moment: Moment) -> str:
    """`search 3 of at most 7: 40 of 64 images, 10.3 images/s`, as far as there is something to count."""
    if not moment.total:
        return moment.stage
    text = f"{moment.stage}: {moment.done} of {moment.total} {moment.things}"
    if not moment.done or moment.stage_seconds <= 0:
        return text
    rate = moment.done / moment.stage_seconds
    return f"{text}, {rate:.1f} {moment.things}/s" if rate >= 1 else f"{text}, {1 / rate:.1f} s each"


def describe_moment(moment: Moment) -> str:
    """The phase, and how much of the whole run is over."""
    if moment.left is None or moment.share is None:
        return describe_phase(moment) if moment.total else f"{moment.stage} ..."
    return f"{describe_phase(moment)}; {moment.share:.0%} of the run, about {spell_seconds(moment.left)} left"


def _describe_left(moment: Moment) -> str:
    return "" if moment.left is None else f"{spell_seconds(moment.left)} left"


def spell_seconds(seconds: float) -> str:
    """A time as people say it: `35 s`, `4 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def show_progress() -> Iterator[Run]:
    """A run that is shown as it goes: one line with a bar on a terminal, a line every ten seconds elsewhere."""
    run = Run()
    console = Console(stderr=True)
    with _draw_bar(run, console) if console.is_terminal and not console.is_dumb_terminal else _say_lines(run):
        yield run


@contextmanager
def _draw_bar(run: Run, console: Console) -> Iterator[None]:
    where = _Watched(run, describe_phase, Column(no_wrap=True, overflow="ellipsis", ratio=1))
    left = _Watched(run, _describe_left, Column(no_wrap=True, justify="right"))
    columns = (where, BarColumn(BAR_COLUMNS), TaskProgressColumn(), left)
    with Progress(*columns, console=console, transient=True, refresh_per_second=4, expand=True) as bars:
        bars.add_task("", total=1.0)
        run.watch = lambda moment: None if moment.done else bars.refresh()  # a phase begins
        run.hear = lambda sentence: console.print(Text(spell_warning(sentence)), soft_wrap=True)
        run.note = lambda sentence: console.print(Text(clean_text(sentence)), soft_wrap=True)
        yield


@contextmanager
def _say_lines(run: Run) -> Iterator[None]:
    """From a thread of its own: a phase that counts nothing shall not look like one that hangs."""
    stop = threading.Event()

    def say() -> None:
        while not stop.wait(PLAIN_SECONDS):
            if (moment := run.moment) is not None:
                with suppress(OSError, ValueError):  # nobody reads stderr
                    click.echo(describe_moment(moment), err=True)

    run.hear = lambda sentence: click.echo(spell_warning(sentence), err=True)
    run.note = lambda sentence: click.echo(clean_text(sentence), err=True)
    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def warn(sentences: Sequence[str], run: Run | None = None) -> None:
    """Warnings, one line each, without those that a run has said already."""
    for sentence in sentences:
        if run is None or sentence not in run.warned:
            click.echo(spell_warning(sentence), err=True)


def spell_warning(sentence: str) -> str:
    """As it is printed."""
    return f"warning: {clean_text(sentence)}"


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
