"""`corp-onnx report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from corp_onnx.errors import OptionError
from corp_onnx.report.card import write_card
from corp_onnx.report.nodes import write_nodes
from corp_onnx.report.page import read_report, write_page


@click.command()
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="The page, HTML.")
@click.option("--card", type=click.Path(path_type=Path), metavar="FILE",
              help="A model card for the Hugging Face hub, of one report of prune.")  # fmt: skip
@click.option("--nodes", type=click.Path(path_type=Path), metavar="FILE",
              help="Node data for Model Explorer, of one report of prune: FILE.width.json, .error.json.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the paths that were written as JSON.")
def report(
    reports: tuple[Path, ...],
    output: Path | None,
    card: Path | None,
    nodes: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Make one page of REPORTS, the JSON of prune, sweep, analyze, convert, bench and evaluate: it opens from disk and
    loads nothing.

    \b
    Example:
      corp-onnx report deit.pruned.report.json -o page.html
      corp-onnx report p80.report.json p60.report.json bench.json -o page.html
      corp-onnx report deit.pruned.report.json --card README.md
    """
    if not (output or card or nodes):
        raise OptionError("nothing to write: give -o FILE for a page, --card FILE or --nodes FILE.")
    if (card or nodes) and len(reports) > 1:
        raise OptionError(f"--card and --nodes are made of one report; found {len(reports)}.")
    found = [read_report(path) for path in reports]
    written: list[Path] = []
    if output:
        write_page(found, output, force=force, option="-o")
        written.append(output)
    if card:
        write_card(found[0], card, force=force)
        written.append(card)
    if nodes:
        written += write_nodes(found[0], nodes, force=force)
    paths = [str(path) for path in written]
    click.echo(json.dumps(paths) if as_json else "\n".join(f"written: {path}" for path in paths))
