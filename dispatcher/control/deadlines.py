"""How long to wait for a model server: for the first content, between two pieces, and for the whole. Dry.

From what the place has shown, and from what is predicted for this request: a place known to be slow is given its time,
and one that hangs is not waited for as if it were.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from dispatcher.control.window import WINDOW_SAMPLES
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.gateway_settings import TimeoutSettings

MAX_PLACES = 256  # the one without samples for longest is forgotten first
LONGEST_SECONDS = 3600.0  # more is a measurement that is wrong
OLDEST_SECONDS = 7 * 86400.0  # another model file, another machine: no promise any more
MARGIN = 1.25  # over the slowest seen
PREDICTED_FACTOR = 3.0  # a prediction is a median; three times it is hardly ever needed
PAUSE_FACTOR = 10.0
UNKNOWN_PAUSE_SECONDS = 30.0
LEAST_SECONDS = 1.0  # nothing sooner is slow, whatever was seen or predicted


class _Slowest:
    """The largest of the last hundred: their p99.9, and found without sorting them for every request."""

    __slots__ = ("_largest", "_samples")

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=WINDOW_SAMPLES)  # seconds, when
        self._largest: tuple[float, float] | None = None

    def add(self, seconds: float, at_seconds: float) -> None:
        leaves = self._samples[0] if len(self._samples) == WINDOW_SAMPLES else None
        self._samples.append((seconds, at_seconds))
        if self._largest is None or seconds >= self._largest[0]:
            self._largest = (seconds, at_seconds)
        elif leaves == self._largest:
            self._largest = max(self._samples)

    def seconds(self, now_seconds: float) -> float | None:
        while self._largest is not None and now_seconds - self._largest[1] > OLDEST_SECONDS:
            young = [one for one in self._samples if now_seconds - one[1] <= OLDEST_SECONDS]
            self._samples = deque(young, maxlen=WINDOW_SAMPLES)
            self._largest = max(young, default=None)
        return None if self._largest is None else self._largest[0]


class Deadlines:
    """Mutable; one per daemon. Samples and answers are seconds."""

    def __init__(self) -> None:
        self._firsts: OrderedDict[Place, _Slowest] = OrderedDict()  # that came, and those waited for in vain
        self._came: OrderedDict[Place, _Slowest] = OrderedDict()
        self._wholes: OrderedDict[Place, _Slowest] = OrderedDict()
        self._pauses: OrderedDict[Place, _Slowest] = OrderedDict()

    def first(self, place: Place, seconds: float, at_seconds: float, *, came: bool = True) -> None:
        """How long the first content took. One that timed out is a sample, too, of what it was given: it took at least
        so long, and without it a place that has become slow would never be given more. That it grows by a quarter each
        time ends at the settings' bound, and a hundred answers in time make it forgotten."""
        _add(self._firsts, place, seconds, at_seconds)
        if came:
            _add(self._came, place, seconds, at_seconds)

    def whole(self, place: Place, seconds: float, at_seconds: float) -> None:
        """How long an answer took that came in one."""
        _add(self._wholes, place, seconds, at_seconds)

    def pause(self, place: Place, seconds: float, at_seconds: float) -> None:
        """The longest pause within one stream; a stalled one counts with what it was given."""
        _add(self._pauses, place, seconds, at_seconds)

    def first_token_seconds(
        self, place: Place, predicted_seconds: float | None, rules: TimeoutSettings, now_seconds: float
    ) -> float:
        """predicted_seconds: until this request's first content; None when nobody can say.

        The longer of the two on purpose: a prompt ten times longer than all before it must not time out because of
        their history, nor a request predicted too short because of its prediction."""
        return _given(_seconds(self._firsts, place, now_seconds), predicted_seconds, rules)

    def overdue_seconds(
        self, place: Place, predicted_seconds: float | None, rules: TimeoutSettings, now_seconds: float
    ) -> float:
        """As first_token_seconds, by what came only: what the place failed to answer within is no reason to wait longer
        for it."""
        return _given(_seconds(self._came, place, now_seconds), predicted_seconds, rules)

    def whole_overdue_seconds(
        self, place: Place, predicted_seconds: float | None, rules: TimeoutSettings, now_seconds: float
    ) -> float:
        """When an answer in one is overdue at a place that gives answers: ordinary long ones come sooner."""
        longest = _longest(_seconds(self._wholes, place, now_seconds), predicted_seconds)
        return max(rules.first_token_min_seconds, rules.first_token_max_seconds if longest is None else longest)

    def expected_seconds(self, place: Place, predicted_seconds: float, now_seconds: float, *, stream: bool) -> float:
        """What an answer there hardly ever takes longer than, to its first content (whole: to its end): its p99. By the
        longer of history and prediction, as for deadlines."""
        slowest = _seconds(self._came if stream else self._wholes, place, now_seconds)
        return max(LEAST_SECONDS, slowest or 0.0, PREDICTED_FACTOR * predicted_seconds)

    def between_seconds(self, place: Place, rules: TimeoutSettings, now_seconds: float) -> float:
        slowest = _seconds(self._pauses, place, now_seconds)
        wanted = UNKNOWN_PAUSE_SECONDS if slowest is None else PAUSE_FACTOR * slowest
        return max(rules.between_min_seconds, min(rules.between_max_seconds, wanted))


def _given(slowest_seconds: float | None, predicted_seconds: float | None, rules: TimeoutSettings) -> float:
    longest = _longest(slowest_seconds, predicted_seconds)
    wanted = rules.first_token_max_seconds if longest is None else longest
    return max(rules.first_token_min_seconds, min(rules.first_token_max_seconds, wanted))


def _longest(slowest_seconds: float | None, predicted_seconds: float | None) -> float | None:
    """None: nothing was seen, and nobody can say."""
    known = []
    if slowest_seconds is not None:
        known.append(MARGIN * slowest_seconds)
    if predicted_seconds is not None and predicted_seconds > 0:
        known.append(PREDICTED_FACTOR * predicted_seconds)
    return max(known, default=None)


def total_seconds(first_token_seconds: float, predicted_seconds: float | None, rules: TimeoutSettings) -> float:
    """From ready and a free slot on. predicted_seconds: of the whole generation; None when nobody can say."""
    predicted = predicted_seconds if predicted_seconds is not None and predicted_seconds > 0 else 0.0
    return first_token_seconds + max(rules.total_seconds, PREDICTED_FACTOR * predicted)


def _add(kept: OrderedDict[Place, _Slowest], place: Place, seconds: float, at_seconds: float) -> None:
    if not 0 <= seconds <= LONGEST_SECONDS:
        return
    kept.setdefault(place, _Slowest()).add(seconds, at_seconds)
    kept.move_to_end(place)
    if len(kept) > MAX_PLACES:
        kept.popitem(last=False)


def _seconds(kept: OrderedDict[Place, _Slowest], place: Place, now_seconds: float) -> float | None:
    slowest = kept.get(place)
    return None if slowest is None else slowest.seconds(now_seconds)
