"""What one outcome counts as: which metrics it tells of, and by how much.

| status | success | log latency | quality |
|---|---|---|---|
| ok | 1 | its seconds | where given |
| error | 0 | – (failing fast is not being fast) | – |
| timeout | 0 | at least its timeout | – |
| refused: the policy named no model | 0 | – | – |
| cancelled: the client left | – | its seconds, if that is more than is usual: then it was slow at least so much | – |
| shed, drained: the daemon had no room, or was leaving | – | – | – |

Seconds are compared as their logarithm, so "twice as slow" is the same at 1 s and at 60 s, and pulled to at most 3
standard deviations of all values so far, both arms together (never less than a factor of 4): for a log-normal that
touches 3 in 1,000, while one answer of 403 s among answers of 6 s counts like one of some 40 s. Nothing is an outlier
before 20 values are there: they are held, and median and median absolute deviation set the first limits, so that the
very first value can be the outlier. The limits are the same for both arms and come from the past alone, hence cannot
favour one. Every clipped value is counted.

A load that the other arm caused (it had the model put out) is taken off the request that had to wait for it, and
added to the next latency that counts of the arm that caused it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, log, sqrt
from statistics import median
from typing import Any

from dispatcher.experiments.sums import added, spread_with
from dispatcher.vocabulary.experiment import ARMS, Arm, ArmTally, ExperimentState, Held, Metric, Observation, Spread

MIN_SECONDS = 0.001  # shorter is not told apart
MAX_SECONDS = 86400.0 * 7
DEVIATIONS = 3.0
MIN_REACH = log(4)
HELD = 20
MAX_DEBTS = 64  # of one arm; what comes on top is added to the newest
MAD_TO_DEVIATION = 1.4826  # of a normal distribution


def flaw(observation: Observation) -> str | None:
    """Why it cannot be counted, in words; None when it can."""
    seconds = {
        "duration_seconds": observation.duration_seconds,
        "timeout_seconds": observation.timeout_seconds,
        "switch_seconds": observation.switch_seconds,
    }
    for name, value in seconds.items():
        if value is not None and not (isfinite(value) and 0 <= value <= MAX_SECONDS):
            return f"{name} is {value:g}; it must be from 0 to {MAX_SECONDS:g}"
    quality = observation.quality
    if quality is not None and not 0 <= quality <= 10:
        return f"quality is {quality:g}; it must be from 0 to 10"
    if observation.status in ("ok", "timeout") and observation.duration_seconds is None:
        return f"duration_seconds is missing, and its status is {observation.status}"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What of a state one outcome changes."""

    a: ArmTally
    b: ArmTally
    spread: Spread
    held: tuple[Held, ...]


def counted(state: ExperimentState, observation: Observation) -> Counted | None:
    """The outcome in the sums; None when its status says nothing about the arm."""
    if observation.status in ("shed", "drained"):
        return None
    step = _Step(state)
    seconds = step.charged_seconds(observation)
    if observation.status == "cancelled" and seconds is None:
        return None
    arm = observation.arm
    step.put(arm, "observed", step.at(arm, "observed") + 1)
    if observation.status != "cancelled":
        step.take("success", observation, float(observation.status != "ok"))
    if observation.status == "ok" and observation.quality is not None:
        step.take("quality", observation, 1 - observation.quality / 10)
    if seconds is not None:
        loss = log(max(seconds, MIN_SECONDS))
        step.take_latency(Held(arm=arm, unit=observation.unit, shared=observation.shared, loss=loss))
    return step.done()


class _Step:
    """A working copy, for the length of one call: the frozen values are made once at its end, not once per metric."""

    def __init__(self, state: ExperimentState) -> None:
        self._tallies: dict[Arm, ArmTally] = {"A": state.a, "B": state.b}
        self._changes: dict[Arm, dict[str, Any]] = {"A": {}, "B": {}}
        self._spread = state.spread
        self._held = state.held

    def at(self, arm: Arm, name: str) -> Any:
        changes = self._changes[arm]
        return changes[name] if name in changes else getattr(self._tallies[arm], name)

    def put(self, arm: Arm, name: str, value: object) -> None:
        self._changes[arm][name] = value

    def done(self) -> Counted:
        a, b = (
            replace(self._tallies[arm], **self._changes[arm]) if self._changes[arm] else self._tallies[arm]
            for arm in ARMS
        )
        return Counted(a=a, b=b, spread=self._spread, held=self._held)

    def take(self, metric: Metric, of: Observation | Held, loss: float, *, clipped: bool = False) -> None:
        self.put(of.arm, metric, added(self.at(of.arm, metric), loss, of.unit, shared=of.shared, clipped=clipped))

    def charged_seconds(self, observation: Observation) -> float | None:
        """The seconds that count for its arm, None when they do not; who owes what is put down."""
        seconds, arm = observation.duration_seconds, observation.arm
        if seconds is None or observation.status not in ("ok", "timeout", "cancelled"):
            return None
        if observation.status == "timeout":
            seconds = max(seconds, observation.timeout_seconds or 0.0)
        other = observation.switch_arm
        if other is not None and other != arm and observation.switch_seconds > 0:
            moved = min(observation.switch_seconds, seconds)
            seconds -= moved
            self.put(other, "debts_seconds", _owed(self.at(other, "debts_seconds"), moved))
            self.put(other, "charged_seconds", self.at(other, "charged_seconds") + moved)
        if observation.status == "cancelled" and not _is_slow(self._spread, seconds):
            return None
        debts = self.at(arm, "debts_seconds")
        if debts:
            seconds += debts[0]
            self.put(arm, "debts_seconds", debts[1:])
        return seconds

    def take_latency(self, value: Held) -> None:
        if self._spread.n:
            self._clip(value, *limits(self._spread))
            return
        self._held = (*self._held, value)
        if len(self._held) < HELD:
            return
        held, self._held = self._held, ()
        centre = median(one.loss for one in held)
        deviation = MAD_TO_DEVIATION * median(abs(one.loss - centre) for one in held)
        reach = max(DEVIATIONS * deviation, MIN_REACH)
        for one in held:
            self._clip(one, centre - reach, centre + reach)

    def _clip(self, value: Held, low: float, high: float) -> None:
        loss = min(max(value.loss, low), high)
        self._spread = spread_with(self._spread, loss)
        self.take("log_latency", value, loss, clipped=loss != value.loss)


def _owed(debts: tuple[float, ...], seconds: float) -> tuple[float, ...]:
    return (*debts, seconds) if len(debts) < MAX_DEBTS else (*debts[:-1], debts[-1] + seconds)


def _is_slow(spread: Spread, seconds: float) -> bool:
    return spread.n >= HELD and log(max(seconds, MIN_SECONDS)) > spread.mean


def limits(spread: Spread) -> tuple[float, float]:
    """Between which a log latency is taken as it is. The spread has at least HELD values."""
    reach = max(DEVIATIONS * sqrt(spread.deviations / (spread.n - 1)), MIN_REACH)
    return spread.mean - reach, spread.mean + reach
