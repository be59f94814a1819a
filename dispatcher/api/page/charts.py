"""Pictures as inline SVG: sizes are attributes, because the page's policy allows no inline style. Each says in words
what it shows, for those who do not see it."""

from __future__ import annotations

from collections.abc import Sequence

from dispatcher.api.page.markup import NOTHING, Markup, element
from dispatcher.api.page.words import UNKNOWN, cut, size
from dispatcher.vocabulary.fleet import FleetView

BAR_WIDTH = 1000
LINE_WIDTH, LINE_HEIGHT, LINE_EDGE = 120, 32, 3
POINTS = 60
TONES = 6  # as many as the style sheet has


def tone(position: int) -> str:
    """The class of the model at this position of the chain; those outside of it share what is left."""
    return f"tone-{position % TONES}"


def memory_bar(fleet: FleetView, tones: dict[str, str]) -> Markup:
    """The ledger to scale: what each place holds, what is free for models, and what models may never have."""
    capacity_bytes = fleet.capacity_bytes
    held = [(view.place.model, view.budget_bytes) for view in fleet.places if view.budget_bytes > 0]
    if capacity_bytes is None or capacity_bytes <= 0:
        return element("p", "How much memory this machine has is ", element("strong", UNKNOWN), ".")
    whole_bytes = max(capacity_bytes, fleet.reserve_bytes + sum(count for _, count in held))
    scale = BAR_WIDTH / whole_bytes
    shown, at = [], 0.0
    for model, count_bytes in held:
        width = count_bytes * scale
        shown.append(_block(at, width, tones.get(model, "tone-none"), f"{cut(model, 80)}: {size(count_bytes)}"))
        at += width
    reserve = fleet.reserve_bytes * scale
    shown.append(_block(BAR_WIDTH - reserve, reserve, "reserve", f"kept free: {size(fleet.reserve_bytes)}"))
    promised = f"{size(fleet.reserved_bytes)} of {size(capacity_bytes - fleet.reserve_bytes)} promised to models"
    return element(
        "svg",
        *shown,
        class_="memory-bar",
        viewBox=f"0 0 {BAR_WIDTH} 28",
        preserveAspectRatio="none",
        role="img",
        aria_label=promised,
    )


def _block(at: float, width: float, class_: str, words: str) -> Markup:
    sides = {"x": round(at, 2), "y": 0.0, "width": max(0.0, round(width, 2)), "height": 28.0}
    return element("rect", element("title", words), class_=class_, **sides)


def sparkline(values: Sequence[float], class_: str, words: str) -> Markup:
    """Oldest first, from 0 up, so that a flat line is a steady one and not noise blown up."""
    shown = list(values)[-POINTS:]
    if not shown:
        return NOTHING
    top = max(shown) or 1.0
    step = (LINE_WIDTH - 2 * LINE_EDGE) / max(1, len(shown) - 1)
    spots = [
        (round(LINE_EDGE + step * n, 1), round(LINE_HEIGHT - LINE_EDGE - (LINE_HEIGHT - 2 * LINE_EDGE) * each / top, 1))
        for n, each in enumerate(shown)
    ]
    if len(spots) == 1:
        spots.insert(0, (float(LINE_EDGE), spots[0][1]))
        spots[1] = (float(LINE_WIDTH - LINE_EDGE), spots[1][1])
    line = " ".join(f"{x:g},{y:g}" for x, y in spots)
    ground = LINE_HEIGHT - LINE_EDGE
    return element(
        "svg",
        element("polygon", points=f"{spots[0][0]:g},{ground} {line} {spots[-1][0]:g},{ground}"),
        element("polyline", points=line),
        class_=f"sparkline {class_}",
        viewBox=f"0 0 {LINE_WIDTH} {LINE_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=words,
    )
