"""How good each model's answers to each task are, as far as anybody said: sums for a Beta posterior. Dry.

The prior is the chain's declared capabilities, which deciding adds (policy.scorers): here is only what was seen. One
answer moves a belief by 1 / (n + prior samples) at most, whatever it was; all of them fade by 0.999 per answer, so a
model that was replaced under the same name is believed anew within some thousand.
"""

from __future__ import annotations

from collections.abc import Mapping

from dispatcher.vocabulary.event import Completed
from dispatcher.vocabulary.profile import NO_BELIEF, Belief

FADES_PER_ANSWER = 0.999
FAULTLESS_QUALITY = 5.0  # from it on an answer that was judged by itself showed no fault
BEST_QUALITY = 10.0


class Beliefs:
    """Mutable; one per tally."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Belief] = {}

    @property
    def known(self) -> Mapping[tuple[str, str], Belief]:
        """A copy: what was handed out does not change."""
        return dict(self._known)

    def add(self, event: Completed) -> bool:
        """Whether it said something. A failure says nothing of quality: that is success, another matter."""
        quality = event.quality
        if quality is None or event.status != "ok" or not 0 <= quality <= BEST_QUALITY:
            return False
        key = (event.model, event.task)
        before = self._known.get(key, NO_BELIEF)
        plain = event.judged_by == "answer" and quality >= FAULTLESS_QUALITY
        share = quality / BEST_QUALITY
        self._known[key] = Belief(
            good=before.good * FADES_PER_ANSWER + (0.0 if plain else share),
            poor=before.poor * FADES_PER_ANSWER + (0.0 if plain else 1.0 - share),
            plain=before.plain * FADES_PER_ANSWER + float(plain),
        )
        return True

    def forget(self, model: str) -> None:
        for key in [key for key in self._known if key[0] == model]:
            del self._known[key]
