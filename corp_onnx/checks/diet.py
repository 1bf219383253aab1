"""How a prune keeps to a limit of its memory, or to what is free.

Enters a `Footprint`; leaves a `Diet`: the batch, and how much of what several stages need lies in memory. The rest lies
in a file, so a limit costs time and never an answer; where even the sums of all units are too many, they are collected
in passes, and the moments lie in a file too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from corp_onnx.calibrate.groups import cut_groups, pass_bytes
from corp_onnx.checks.footprint import CALIBRATE, Footprint
from corp_onnx.errors import OptionError, OutputError
from corp_onnx.memory import MARGIN, available_bytes, list_batches, resident_bytes, write_size
from corp_onnx.shelf import free_bytes


@dataclass(frozen=True, slots=True)
class Diet:
    """How a run keeps to its memory.

    Attributes:
        batch_size: images at a time.
        shelf: bytes of images and streams that stay in memory; None is all.
        peak: bytes that are expected at the most.
        in_files: bytes that are expected to lie in a file.
        sums: bytes that running sums may take at a time; None is all.
        n_passes: over the images, that fill them.
    """

    batch_size: int
    shelf: int | None
    peak: int
    in_files: int
    sums: int | None = None
    n_passes: int = 1

    def describe(self) -> str:
        """In a sentence."""
        aside = f", and {write_size(self.in_files)} in a file" if self.in_files else ""
        aside += f", the sums in {self.n_passes} passes" if self.n_passes > 1 else ""
        free = available_bytes()
        left = "" if free is None else f"; {write_size(free)} are free"
        return f"memory: about {write_size(self.peak)} at the most, {self.batch_size} images at a time{aside}{left}."


def choose_diet(footprint: Footprint, batch_size: int, limit: int | None, folder: Path) -> Diet:
    """The batch and the shelf that keep to a limit.

    Args:
        batch_size: wanted; it is only made smaller.
        limit: bytes that a person allows; None is what is there, beyond which files are used.
        folder: where those lie.

    Raises:
        OptionError: not even one image at a time with everything in files fits.
        OutputError: the disk has no room for them.
    """
    free = available_bytes()
    room = int(limit / MARGIN) if limit is not None else None if free is None else (resident_bytes() or 0) + free
    whole = footprint.peak(batch_size, footprint.shelved)
    if room is None or whole <= room:
        return Diet(batch_size, None, int(whole), 0)
    sizes = list_batches(batch_size)
    lean = footprint.in_turn()
    tries = [(made, size) for made in (lean, lean.in_passes()) for size in sizes]
    fitting = [(made, size) for made, size in tries if made.without_shelf(size) <= room]
    if not fitting and limit is not None:
        name, fixed, each = max(tries[-1][0].phases, key=lambda phase: phase[1] + phase[2])
        raise OptionError(
            f"--memory {write_size(limit)} is too little: to {name} this model takes about "
            f"{write_size(MARGIN * (fixed + each))}, one image at a time and with everything else in files. Give at "
            "least that."
        )
    diet = _fill_room(*(fitting[0] if fitting else tries[-1]), room)
    if diet.in_files > free_bytes(folder):
        raise OutputError(
            f"{folder}: intermediate results need about {write_size(diet.in_files)} there, and "
            f"{write_size(free_bytes(folder))} are free: free some, or allow more memory with --memory."
        )
    return diet


def _fill_room(footprint: Footprint, batch_size: int, room: int) -> Diet:
    """The shelf and the passes that take what is left."""
    shelf = max(int(room - footprint.without_shelf(batch_size)), 0)
    in_files = int(max(footprint.shelved - shelf, 0) + footprint.aside)
    peak = int(footprint.peak(batch_size, min(shelf, footprint.shelved)))
    if not footprint.is_passing:
        return Diet(batch_size, shelf, peak, in_files)
    fixed, each = next((fixed, each) for name, fixed, each in footprint.phases if name == CALIBRATE)
    least = max(pass_bytes([unit]) for unit in footprint.units)
    sums = least + max(int(room - fixed - batch_size * each), 0)
    n_passes = len(cut_groups(footprint.units, sums))
    return Diet(batch_size, shelf, max(peak, room) if n_passes > 1 else peak, in_files, sums, n_passes)
