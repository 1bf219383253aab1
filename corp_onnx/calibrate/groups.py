"""Units whose sums do not fit into memory at once, cut into groups: each is filled by a pass of its own.

Enters units and the bytes that their sums may take; leaves groups in the order of the network, so that a pass ends
behind the last block of its group. The images go through the blocks before it again: with p passes over equal parts of
the network it costs (p + 1) / 2 times one.
"""

from __future__ import annotations

from collections.abc import Sequence

from corp_onnx.moments.tiles import TILE_ROWS
from corp_onnx.units import Unit

FLOAT, DOUBLE = 4, 8


def count_squares(unit: Unit) -> int:
    """Numbers of a unit's moments: a square of what it regresses on, or three a head."""
    return unit.n_regressors**2 or 3 * (unit.n_heads or 0) * unit.width**2


def filling_bytes(unit: Unit) -> int:
    """What its sums take while they are filled: two precisions, and a tile of rows."""
    return (FLOAT + DOUBLE) * count_squares(unit) + FLOAT * TILE_ROWS * unit.n_regressors


def finished_bytes(units: Sequence[Unit]) -> int:
    """What the moments of units take."""
    return DOUBLE * sum(map(count_squares, units))


def largest_bytes(units: Sequence[Unit]) -> int:
    """What the moments of the largest of them take."""
    return max((finished_bytes([unit]) for unit in units), default=0)


def pass_bytes(units: Sequence[Unit]) -> int:
    """What is held at the most when all of them are filled by one pass: their sums, and one that becomes moments."""
    return sum(map(filling_bytes, units)) + largest_bytes(units)


def cut_groups(units: Sequence[Unit], room: int | None) -> tuple[tuple[Unit, ...], ...]:
    """The units of every pass.

    Args:
        room: bytes that `pass_bytes` of a group keeps to, but for a unit that is larger alone; None is no limit.
    """
    if room is None or pass_bytes(units) <= room:
        return (tuple(units),)
    groups: list[list[Unit]] = [[]]
    for unit in sorted(units, key=lambda unit: (unit.site.key.block, unit.site.key.part)):
        if groups[-1] and pass_bytes([*groups[-1], unit]) > room:
            groups.append([])
        groups[-1].append(unit)
    return tuple(map(tuple, groups))
