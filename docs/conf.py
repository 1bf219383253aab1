"""The site, built by Sphinx: `make docs`. Why Sphinx: CONTRIBUTING.md.

Sphinx reads from the root of the project, so that links out of docs/ lead to pages as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from corp_onnx import __version__

project, author, version = "corp-onnx", "The corp-onnx authors", __version__
copyright = author  # noqa: A001
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "benchmarks/*.md", "examples/**.md", "models/*.md", "tests/fixtures/*.md"]
exclude_patterns = [".*", "build", "out", "**/node_modules", "corp_onnx", "tools"]
suppress_warnings = ["toc.not_included"]  # what lies outside of docs/; of docs/ a test knows
smartquotes = False  # `--macs` is an option, no dash

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "groupwise"
default_role = "code"

html_theme = "furo"
html_title = "corp-onnx"
html_show_copyright = False
html_math_renderer = "mathml"
html_static_path = ["site.css"]
html_css_files = ["site.css"]


def write_inline(translator: Any, node: nodes.math) -> None:
    """MathML, which browsers know: no script of another's server."""
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def write_block(translator: Any, node: nodes.math_block) -> None:
    """The same on a line of its own."""
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def write_entrance(app: Any, _error: Exception | None) -> None:
    """The page that opens where a folder is asked for."""
    page = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>corp-onnx</title>'
    Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def drop_introduction(_app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """The page says itself what a module says of itself at its top."""
    if what == "module":
        lines.clear()


def setup(app: Any) -> None:
    """What Sphinx calls: MathML by docutils, the entrance, and the module without its docstring."""
    app.connect("autodoc-process-docstring", drop_introduction)
    app.connect("build-finished", write_entrance)
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
