"""The site, built by Sphinx from docs/: `make docs`. Why Sphinx: CONTRIBUTING.md."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from corp_onnx import __version__

project, author, version = "corp-onnx", "The corp-onnx authors", __version__
copyright = author  # noqa: A001
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["*.json"]
suppress_warnings = ["toc.empty_glob"]  # a page that is not written yet
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


def write_inline(translator: Any, node: nodes.math) -> None:
    """MathML, which browsers know: no script of another's server."""
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def write_block(translator: Any, node: nodes.math_block) -> None:
    """The same on a line of its own."""
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """What Sphinx calls: MathML by docutils."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
