"""What pruning did, as node data for Model Explorer: graph name -> node name -> value and colour.

Enters a report of `prune` and the pruned file, whose blocks are found again as in any other; leaves two JSON texts, of
the share of every unit's width that stayed and of its error, each loadable beside that file. Nodes without a name are
left out: the viewer names them in ways of its own. A node of several units shows their mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from corp_onnx.blocks import find_blocks
from corp_onnx.errors import InputError
from corp_onnx.graph import load_model
from corp_onnx.report.parts import Facts
from corp_onnx.run.probe import probe_graph
from corp_onnx.staging import check_destinations, staged_files, write_text
from corp_onnx.units import KINDS, list_units

WIDTH, ERROR = "width", "error"
NAMES = {WIDTH: "share of the width kept", ERROR: "error of the unit, only this one pruned"}
"""What the viewer calls them."""

LIGHT = (255, 255, 255)
DARK = {WIDTH: (0, 114, 178), ERROR: (213, 94, 0)}
"""The ends of the two colours: much went, or a large error, is dark."""

TEXT_FROM = 0.6
"""Of the way to the dark end, where text on it turns white."""


def name_files(path: Path) -> tuple[Path, Path]:
    """`nodes.width.json` and `nodes.error.json` of `nodes.json`."""
    stem = path.with_suffix("") if path.suffix == ".json" else path
    width, error = (stem.with_name(f"{stem.name}.{what}.json") for what in (WIDTH, ERROR))
    return width, error


def check_nodes(path: Path, *, force: bool = False) -> None:
    """Refuse a place where the files can not appear, before any work."""
    width, error = name_files(path)
    check_destinations({"--nodes": width, "--nodes (error)": error}, force=force)


def write_nodes(facts: Facts, path: Path, *, force: bool = False) -> tuple[Path, Path]:
    """Write both files of a report of `prune`; the pruned file that it names is read again.

    Returns:
        their paths.

    Raises:
        InputError: no report of `prune`, or its pruned file is another one by now.
        OutputError: they can not be written.
    """
    if facts.report.get("verb") != "prune":
        raise InputError(f"{facts.name or 'the report'}: node data are made of a report of prune.")
    pruned = Path(facts.get("pruned.path"))
    texts = make_nodes(facts, pruned)
    width, error = name_files(path)
    with staged_files({"--nodes": width, "--nodes (error)": error}, force=force) as places:
        for what, place, file in zip((WIDTH, ERROR), places, (width, error), strict=True):
            write_text(texts[what], place, file)
    return width, error


def make_nodes(facts: Facts, pruned: Path) -> dict[str, str]:
    """The JSON of both, by what they show."""
    model = load_model(pruned)
    if model.sha256 != facts.get("pruned.sha256"):
        raise InputError(f"{pruned}: is not the file that the report is of (its sha256 differs); prune again.")
    graph = probe_graph(model)
    nodes = {
        str(unit.key): [node.name for node in unit.list_nodes() if node.name]
        for unit in list_units(find_blocks(graph), KINDS, skipped=True)
    }
    kept = {unit["key"]: unit["width_after"] / unit["width_before"] for unit in facts.get("network")}
    errors = {unit["key"]: unit["error"] for unit in facts.get("units") if unit["error"] is not None}
    errors = {key: errors.get(key, 0.0) for key in kept}  # what was left whole has none
    top = max(errors.values(), default=0.0) or 1.0
    name = model.proto.graph.name
    return {
        WIDTH: _write(name, WIDTH, _spread(nodes, kept), lambda value: 1 - value),
        ERROR: _write(name, ERROR, _spread(nodes, errors), lambda value: value / top),
    }


def _spread(nodes: Mapping[str, Sequence[str]], values: Mapping[str, float]) -> dict[str, float]:
    """Values of units on their nodes."""
    found: dict[str, list[float]] = {}
    for key, value in values.items():
        for node in nodes.get(key, ()):
            found.setdefault(node, []).append(value)
    return {node: fmean(own) for node, own in found.items()}


def _write(graph: str, what: str, values: Mapping[str, float], depth: Callable[[float], float]) -> str:
    results = {node: {"value": round(value, 6), **paint(what, depth(value))} for node, value in values.items()}
    return json.dumps({graph: {"name": NAMES[what], "results": results}}, indent=1)


def paint(what: str, depth: float) -> dict[str, str]:
    """The colours of a node, `depth` of the way from light to dark."""
    depth = min(max(depth, 0.0), 1.0)
    mixed = [round(light + depth * (dark - light)) for light, dark in zip(LIGHT, DARK[what], strict=True)]
    colour = "#" + "".join(f"{part:02x}" for part in mixed)
    return {"bgColor": colour, "textColor": "#ffffff" if depth > TEXT_FROM else "#000000"}
