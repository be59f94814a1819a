"""Which of the measured models is the best: by the policy's own scores, with measured seconds for predicted ones.

The score of a model is the mean over the nine tasks, at moderate complexity, of what the policy would give it there for
an answer of its median time. So configure and the daemon do not disagree about what good means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from dispatcher.bench.samples import Summary
from dispatcher.policy import scorers
from dispatcher.policy.filters import Option
from dispatcher.vocabulary.decision import Prediction, Scores
from dispatcher.vocabulary.fleet import Place, PlaceState, PlaceView
from dispatcher.vocabulary.profile import ModelFacts, Success
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX, TASKS, Prefer, Request
from dispatcher.vocabulary.settings import PolicySettings
from dispatcher.vocabulary.words import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """score None: it gave no good answer and cannot be chosen. because: for a person."""

    summary: Summary
    score: float | None
    scores: Scores | None
    because: str

    @property
    def model(self) -> str:
        return self.summary.model


def judged(
    summaries: Sequence[Summary], facts: Mapping[str, ModelFacts], policy: PolicySettings, prefer: Prefer = "balanced"
) -> list[Judged]:
    """The best first; those without a good answer last. Equals in the order given: that of the chain."""
    found = [_judged(each, facts[each.model], policy, prefer) for each in summaries]
    return sorted(found, key=lambda each: (each.score is None, -(each.score or 0.0)))


def _judged(each: Summary, facts: ModelFacts, policy: PolicySettings, prefer: Prefer) -> Judged:
    seconds = each.seconds.median if each.seconds.median is not None else each.cold_seconds.median
    if not each.ok or seconds is None:
        causes = ", ".join(f"{count} × {cause}" for cause, count in each.errors.items()) or "nothing was asked"
        because = f"no good answer ({causes})"
        return Judged(summary=each, score=None, scores=None, because=each.stopped or because)
    success, prediction = Success(ok=each.ok, n=each.asked), _took(seconds, each)
    able = fmean(scorers.capability(facts, task) for task in TASKS)
    scores = Scores(
        capability=able,
        performance=scorers.performance(prediction, success, policy),
        health=scorers.health(_option(facts), success, policy),
    )
    weighed = scorers.weights(Request(id="configure", at_seconds=0.0, complexity="moderate", prefer=prefer), policy)
    because = (
        f"capability {able:.2f} × {weighed[0]:.1f} + performance {scores.performance:.2f} × {weighed[1]:.1f} "
        f"({Seconds(seconds)} per answer, {each.ok} of {each.asked} good) "
        f"+ health {scores.health:.1f} × {weighed[2]:.1f}"
    )
    return Judged(summary=each, score=scorers.total(scores, weighed), scores=scores, because=because)


def _took(seconds: float, each: Summary) -> Prediction:
    """A measured time in the policy's own form."""
    return Prediction(
        wait_seconds=0.0,
        evict_seconds=0.0,
        load_seconds=0.0,
        first_token_seconds=0.0,
        decode_seconds=seconds,
        tokens_per_second=each.tokens_per_second.median or 0.0,
        source="history",
        samples=each.warm,
    )


def _option(facts: ModelFacts) -> Option:
    view = PlaceView(place=Place(server="measured", model=facts.name), state=PlaceState.READY, since_seconds=0.0)
    return Option(view=view, facts=facts, num_ctx=DEFAULT_NUM_CTX, must_start=False, need_bytes=0)
