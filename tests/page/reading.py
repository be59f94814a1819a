"""HTML read back as a browser would: its elements and its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"meta", "link", "input", "br", "img"})


@dataclass
class Page(HTMLParser):
    """tags: each element's name and attributes, in order. texts: what is between them. unclosed: faults."""

    source: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.unclosed.pop(), f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def names(self) -> set[str]:
        return {name for name, _ in self.tags}

    def attributes(self) -> set[str]:
        return {name for _, attributes in self.tags for name in attributes}

    def with_class(self, class_: str) -> list[dict[str, str | None]]:
        return [given for _, given in self.tags if class_ in (given.get("class") or "").split()]
