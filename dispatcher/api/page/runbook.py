"""The runbook of the alerts as a page of ours, so that an alert's link works on a machine without the internet."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from itertools import pairwise

from markdown_it import MarkdownIt

from dispatcher.api.page.document import document
from dispatcher.api.page.markup import Markup


def runbook() -> bytes | None:
    """None: this package carries none. Each heading's id is its text in lower case: alerts link to that."""
    source = files("dispatcher.api.page").joinpath("runbook.md")
    try:
        return rendered(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


@cache
def rendered(text: str) -> bytes:
    """html off: a tag in the text is text. Links keep to the schemes that markdown-it holds harmless."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token, inside in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", inside.content.strip("` ").lower())
    told = parser.renderer.render(tokens, parser.options, {})
    return document(Markup(f'<article class="card prose">{told}</article>'), fragment=None, title="Runbook")
