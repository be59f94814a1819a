"""What the latest ends at each place say: whether it may be believed to be at work while it says nothing.

Less than a breaker, and sooner: it keeps nobody away, but it decides how long the silence of a place is taken for work.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from dispatcher.gateway.errand import Given
from dispatcher.gateway.resting import Resting
from dispatcher.vocabulary.fleet import Place

PROVES_AGAIN = 3  # answers in a row after a failure: of a server that stalls nearly always one proves little
MAX_PLACES = 256  # the one not heard of for longest is forgotten first


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    in_row: int = 0  # whole answers since the last bad end
    needed: int = 1  # of those, to be believed
    answered: bool = False
    failing: bool = False


class Proofs:
    """One per gateway. resting: who said that it cannot now."""

    def __init__(self) -> None:
        self._records: OrderedDict[Place, _Record] = OrderedDict()
        self.resting = Resting()

    def answered(self, place: Place) -> None:
        self.resting.answered(place)
        record = self._records.get(place, _Record())
        in_row = record.in_row + 1
        needed = 1 if in_row >= record.needed else record.needed
        self._put(place, _Record(in_row=in_row, needed=needed, answered=True))

    def failed(self, place: Place) -> None:
        record = self._records.get(place, _Record())
        self._put(place, replace(record, in_row=0, needed=PROVES_AGAIN, failing=True))

    def left(self, place: Place) -> None:
        """A client, before any content: maybe of impatience, maybe with good reason."""
        record = self._records.get(place, _Record())
        self._put(place, replace(record, in_row=0))

    def is_doubtful(self, given: Given) -> bool:
        record = self._records.get(given.place)
        if record is None:
            return self.is_new(given)
        return record.in_row < record.needed

    def is_failing(self, place: Place) -> bool:
        """Its latest end was a failure."""
        record = self._records.get(place)
        return record is not None and record.failing

    def is_new(self, given: Given) -> bool:
        """It has never answered, as far as anybody here remembers."""
        record, prediction = self._records.get(given.place), given.prediction
        if record is not None and record.answered:
            return False
        return prediction is None or not prediction.samples

    def _put(self, place: Place, record: _Record) -> None:
        self._records[place] = record
        self._records.move_to_end(place)
        if len(self._records) > MAX_PLACES:
            self._records.popitem(last=False)
