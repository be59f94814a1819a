"""A survivor of the filters with what speaks for it: what the choice is made among. Nothing here chooses."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.policy.filters import Option
from dispatcher.vocabulary.decision import Prediction, Scores
from dispatcher.vocabulary.fleet import PlaceState


@dataclass(slots=True)
class Scored:
    """A survivor with its score, while the best is sought."""

    option: Option
    prediction: Prediction
    scores: Scores
    score: float
    order: int  # position in the chain

    @property
    def is_ready(self) -> bool:
        return not self.option.must_start and self.option.view.state is PlaceState.READY
