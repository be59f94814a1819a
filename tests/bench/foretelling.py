"""A recorded sequence of real requests through the predictor, one after the other: predict, then learn.

What is predicted is the whole of each request, load included, given the true number of tokens it generated.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from dispatcher.control.tally import Tally
from dispatcher.policy.decide import decide
from dispatcher.vocabulary.action import Start
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.event import Acted, Completed
from dispatcher.vocabulary.fleet import FleetView, Place
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX, Request
from dispatcher.vocabulary.settings import GIB, Settings
from dispatcher.vocabulary.world import World
from tests.builders import LLAMA, NOW, PHI, QWEN, a_fleet, a_place_view, a_ready_view, a_snapshot

SETTLED_AFTER = 50
PLACES = {place.model: place for place in (PHI, LLAMA, QWEN)}
Row = Mapping[str, object]


def recorded(file: Path) -> list[Row]:
    """timeline.json: what Ollama said of sequential calls, in nanoseconds."""
    rows: list[Row] = json.loads(file.read_text("utf-8"))
    return rows


def errors(rows: Sequence[Row]) -> list[float]:
    """|predicted − actual| / actual of each row's total seconds, in order."""
    settings = Settings()
    tally = Tally({model.name: model.facts() for model in settings.models})
    told = []
    for number, row in enumerate(rows):
        now = NOW + float(row["at_seconds"])  # type: ignore[arg-type]
        place, cold = PLACES[str(row["model"])], row["start"] != "warm"
        request = Request(
            id=f"d-{number}",
            at_seconds=now,
            model=place.model,
            prompt_tokens=int(row["prompt_eval_count"]),  # type: ignore[call-overload]
            output_tokens=int(row["eval_count"]),  # type: ignore[call-overload]
        )
        world = World(snapshot=a_snapshot(), fleet=_fleet(place, cold=cold), profiles=tally.profiles(now))
        chosen = decide(request, world, settings, now).chosen
        assert chosen is not None and chosen.prediction is not None
        timings = _timings(row)
        assert timings.total_seconds is not None
        told.append(abs(chosen.prediction.total_seconds - timings.total_seconds) / timings.total_seconds)
        _learn(tally, request, place, timings, now + timings.total_seconds, cold=cold)
    return told


def settled_error(rows: Sequence[Row]) -> float:
    """Median past the first fifty."""
    return statistics.median(errors(rows)[SETTLED_AFTER:])


def _fleet(place: Place, *, cold: bool) -> FleetView:
    """Only this place, as it was; a reload is a start to whoever waits for it."""
    made = a_place_view if cold else a_ready_view
    return a_fleet(made(place), capacity_bytes=16 * GIB)


def _timings(row: Row) -> Timings:
    def seconds(name: str) -> float | None:
        value = row.get(name)
        return None if value is None else float(value) / 1e9  # type: ignore[arg-type]

    return Timings(
        total_seconds=seconds("total_duration"),
        load_seconds=seconds("load_duration"),
        prompt_eval_seconds=seconds("prompt_eval_duration"),
        eval_seconds=seconds("eval_duration"),
        prompt_tokens=int(row["prompt_eval_count"]),  # type: ignore[call-overload]
        output_tokens=int(row["eval_count"]),  # type: ignore[call-overload]
    )


def _learn(tally: Tally, request: Request, place: Place, timings: Timings, now_seconds: float, *, cold: bool) -> None:
    if cold:
        start = Start(place=place, num_ctx=DEFAULT_NUM_CTX, cause="leased")
        load = timings.load_seconds
        tally.on_event(
            Acted(at_seconds=now_seconds, action=start, ok=True, seconds=load or 0.0, load_seconds=load), now_seconds
        )
    event = Completed(
        at_seconds=now_seconds,
        decision_id=request.id,
        model=place.model,
        place=place,
        task=request.task,
        agent="",
        status="ok",
        duration_seconds=timings.total_seconds or 0.0,
        output_tokens=timings.output_tokens,
        timings=timings,
    )
    tally.on_event(event, now_seconds)
