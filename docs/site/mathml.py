"""A renderer of formulas for Sphinx: MathML, which browsers display without a program or a font from elsewhere."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)

# What the converter does not know, in its words.
REPLACED = (
    (r"\\[bB]igg?[lr]?(?![A-Za-z])\s*", ""),
    (r"\\textbf(?![A-Za-z])", r"\\text"),
    (r"\\dots(?![A-Za-z])", r"\\ldots"),
    # It would put an index below an accent.
    (r"(\\(?:wide)?(?:hat|tilde)|\\bar)\s*(\{[^{}]*\}|\\?[A-Za-z]+|[A-Za-z])", r"{\1{\2}}{}"),
)


def convert(formula: str, node: nodes.Node, block: bool) -> str:
    for pattern, by in REPLACED:
        formula = re.sub(pattern, by, formula)
    if block and "\\begin" not in formula and (r"\\" in formula or "&" in formula):
        formula = f"\\begin{{aligned}}{formula}\\end{{aligned}}"
    try:
        return str(latex2mathml.tex2mathml(formula, as_block=block))
    except Exception as e:
        log.warning("the formula cannot be displayed: %s: %s", e, formula, location=node)
        return f"<code>{formula}</code>"


def inline(writer: Any, node: nodes.Element) -> None:
    writer.body.append(convert(node.astext(), node, False))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.Element) -> None:
    writer.body.append(f'<div class="math">{convert(node.astext(), node, True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
