"""What Linux says of the processor, core by core: its name, its maker, what it can do. Elsewhere nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def list_cores() -> tuple[Mapping[str, str], ...]:
    """Of every core, its fields by name (`vendor_id`, `model name`, `flags`); read once."""
    return _read(CPUINFO)


def list_flags() -> frozenset[str]:
    """What the first core can do; empty where the system does not tell."""
    return frozenset(list_cores()[0].get("flags", "").split()) if list_cores() else frozenset()


@cache
def _read(path: Path) -> tuple[Mapping[str, str], ...]:
    try:
        cores = path.read_text(encoding="utf-8", errors="replace").split("\n\n")
    except OSError:
        return ()
    lines = ([line.partition(":") for line in core.splitlines()] for core in cores if core.strip())
    return tuple({name.strip(): value.strip() for name, _, value in of_core} for of_core in lines)
