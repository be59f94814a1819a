"""The run as a picture: three small bar charts side by side, drawn as SVG by hand. No plotting library: it is 12 bars.

Colours come from a style sheet within, for light and dark; numbers stand beside the bars, so that no colour carries
meaning alone. A thin line marks the p95 (of rates the p5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from dispatcher.bench.report import Report, banners, rate, seconds
from dispatcher.bench.samples import Spread, Summary
from dispatcher.vocabulary.words import printable

WIDTH = 960
NAMES_WIDTH = 150  # of the models' names, left
PANEL_GAP = 24
ROW_HEIGHT = 34
BAR_HEIGHT = 16
TEXT_ROOM = 76  # behind the longest bar, for its number
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1c2024; }
  .title { font-size: 16px; font-weight: 600; } .small { font-size: 11px; fill: #60646c; }
  .bar { fill: #3b73c8; } .slow { stroke: #1c2024; stroke-width: 2; } .axis { stroke: #b9bbc6; }
  .loud { fill: #9a4a00; font-weight: 700; } .ground { fill: #ffffff; }
  @media (prefers-color-scheme: dark) {
    text { fill: #edeef0; } .small { fill: #b0b4ba; } .bar { fill: #70a6f0; } .slow { stroke: #edeef0; }
    .axis { stroke: #5a6169; } .loud { fill: #ffb454; } .ground { fill: #111113; }
  }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    note: str
    spreads: Sequence[Spread]
    is_rate: bool = False

    def slow(self, spread: Spread) -> float | None:
        return spread.p5 if self.is_rate else spread.p95

    def words(self, value: float | None) -> str:
        return rate(value) if self.is_rate else seconds(value)

    @property
    def longest(self) -> float:
        return max((v for s in self.spreads for v in (s.median, self.slow(s)) if v is not None), default=0.0)


def svg(report: Report) -> str:
    """Well-formed whatever a model is called."""
    models = report.models
    panels = _panels(models)
    said = banners(report)
    top = 64 + 20 * len(said)
    height = top + ROW_HEIGHT * max(1, len(models)) + 40
    width = (WIDTH - NAMES_WIDTH - PANEL_GAP * len(panels)) / len(panels)
    told = "; ".join(_sentence(each) for each in models) or "nothing was measured"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{_text(f'Benchmark of {len(models)} models')}</title><desc>{_text('. '.join([*said, told]))}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="16" y="26">Benchmark, {_text(report.at)}</text>',
        *(f'<text class="loud" x="16" y="{46 + 20 * at}">{_text(words)}</text>' for at, words in enumerate(said)),
    ]
    for row, each in enumerate(models):
        y = top + ROW_HEIGHT * row + BAR_HEIGHT
        lines.append(f'<text x="16" y="{y - 3}">{_text(_cut(each.model))}</text>')
    for at, panel in enumerate(panels):
        lines += _drawn(panel, NAMES_WIDTH + PANEL_GAP + at * (width + PANEL_GAP), width, top)
    note = "Bar: median of warm good answers without outliers. Thin line: p95, of rates p5, with them."
    lines += [f'<text class="small" x="16" y="{height - 12}">{_text(note)}</text>', "</svg>"]
    return "\n".join(lines) + "\n"


def _panels(models: Sequence[Summary]) -> list[Panel]:
    return [
        Panel(title="whole answer", note="shorter is better", spreads=[each.seconds for each in models]),
        Panel(title="first token", note="shorter is better", spreads=[each.first_token_seconds for each in models]),
        Panel(
            title="tokens per second",
            note="longer is better",
            spreads=[each.tokens_per_second for each in models],
            is_rate=True,
        ),
    ]


def _drawn(panel: Panel, left: float, width: float, top: int) -> list[str]:
    room, longest = width - TEXT_ROOM, panel.longest
    bottom = top + ROW_HEIGHT * max(1, len(panel.spreads)) - 8
    lines = [
        f'<text x="{left:.1f}" y="{top - 14}">{_text(panel.title)} <tspan class="small">{panel.note}</tspan></text>',
        f'<line class="axis" x1="{left:.1f}" y1="{top - 6}" x2="{left:.1f}" y2="{bottom}"/>',
    ]
    for row, spread in enumerate(panel.spreads):
        y = top + ROW_HEIGHT * row
        if spread.median is None or longest <= 0:
            lines.append(f'<text class="small" x="{left + 6:.1f}" y="{y + 12}">not measured</text>')
            continue
        slow = panel.slow(spread)
        reach = max(spread.median, slow or 0.0) / longest * room
        bar = spread.median / longest * room
        lines.append(f'<rect class="bar" x="{left:.1f}" y="{y}" width="{bar:.1f}" height="{BAR_HEIGHT}"/>')
        if slow is not None:
            x = left + slow / longest * room
            lines.append(f'<line class="slow" x1="{x:.1f}" y1="{y - 2}" x2="{x:.1f}" y2="{y + BAR_HEIGHT + 2}"/>')
        lines.append(f'<text x="{left + reach + 8:.1f}" y="{y + 13}">{_text(panel.words(spread.median))}</text>')
    return lines


def _sentence(each: Summary) -> str:
    return (
        f"{each.model}: median {seconds(each.seconds.median)}, p95 {seconds(each.seconds.p95)}, first token "
        f"{seconds(each.first_token_seconds.median)}, {rate(each.tokens_per_second.median)} tokens per second"
    )


def _cut(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


def _text(words: str) -> str:
    return escape(printable(words))
