"""A model that is forgotten: nothing of how it did is left, nor comes back with what is told again."""

from __future__ import annotations

from dispatcher.control.tally import Tally
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.event import Turned
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, GIB
from tests.builders import LLAMA, NOW, QWEN
from tests.history.some_events import a_completed, a_failed, a_start


def forgot(model: str, at_seconds: float) -> Turned:
    return Turned(at_seconds=at_seconds, what="profile", subject=model, before="learned", after="forgotten")


def taught(tally: Tally, place: Place, number: int, at_seconds: float = NOW) -> None:
    timings = Timings(total_seconds=8.0, eval_seconds=5.0, output_tokens=101)
    tally.on_event(
        a_completed(f"d-{place.model}-{number}", place, at_seconds=at_seconds, timings=timings, quality=9.0), NOW
    )
    tally.on_event(a_start(place, at_seconds=at_seconds), NOW)


def learned(tally: Tally, model: str) -> set[str]:
    known = tally.profiles(NOW)
    parts = {
        "rates": {place.model for place in known.rates},
        "success": {key[0] for key in known.success},
        "beliefs": {key[0] for key in known.beliefs},
        "peaks": {key[0] for key in known.peaks},
        "records": {record.model for record in tally.records(NOW)},
    }
    return {name for name, models in parts.items() if model in models}


def test_a_forgotten_model_has_nothing_left_and_the_others_have_all():
    tally = Tally({model.name: model.facts() for model in DEFAULT_CHAIN})
    for place in (LLAMA, QWEN):
        taught(tally, place, 1)
        tally.learn_peak(place.model, 4096, 1, 3 * GIB)
    everything = learned(tally, LLAMA.model)
    tally.on_event(forgot(LLAMA.model, NOW + 1), NOW + 1)

    assert {"rates", "success", "beliefs", "peaks", "records"} == everything
    assert (set(), everything) == (learned(tally, LLAMA.model), learned(tally, QWEN.model))


def test_what_it_did_before_teaches_nothing_when_it_is_told_again_and_what_it_does_later_does():
    tally = Tally({model.name: model.facts() for model in DEFAULT_CHAIN})
    tally.forget(LLAMA.model, NOW)
    taught(tally, LLAMA, 1, at_seconds=NOW - 10)
    tally.on_event(a_failed(LLAMA, at_seconds=NOW - 9), NOW)
    before = learned(tally, LLAMA.model)
    taught(tally, LLAMA, 2, at_seconds=NOW + 10)

    assert (set(), 1) == (before, tally.profiles(NOW + 10).success[LLAMA.model, "coding"].n)
