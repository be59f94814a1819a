"""Two runs side by side: how much slower or faster, and whether that is more than chance.

Prompt by prompt: the ratio of the two medians, and of these ratios the geometric mean. The noise bound is a bootstrap:
the answers of each prompt are drawn again 1,000 times, on both sides, and 99 of 100 ratios lie between `low` and `high`
(99, because a table has a dozen rows). Slower or faster is said only when that interval is on one side of 1 and the
ratio is 10 % or more away from it: two runs on one machine differ by some percent for reasons no resampling sees.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median
from typing import Literal

from dispatcher.bench.samples import Sample, quantile, usual, values_of

METRICS = ("seconds", "first_token_seconds", "tokens_per_second", "load_seconds")
RATES = frozenset({"tokens_per_second"})  # more is better
DRAWS = 1000
INTERVAL = (0.005, 0.995)
LEAST_CHANGE_RATIO = 0.10
LEAST_SAMPLES = 5  # of each prompt on each side; of loads in all

Verdict = Literal["slower", "faster", "no difference seen"]
Groups = Mapping[str, Sequence[float]]  # prompt → values


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """now / earlier of one model and metric, and its 99 % interval. None: too little was measured; because: of what."""

    model: str
    metric: str
    verdict: Verdict
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    because: str = ""


def compare(models: Sequence[str], now: Sequence[Sample], earlier: Sequence[Sample], seed: int = 0) -> list[Compared]:
    """The same answer for the same samples: the draws are seeded."""
    return [
        _compared(model, metric, _groups(model, metric, now), _groups(model, metric, earlier), seed)
        for model in models
        for metric in METRICS
    ]


def _groups(model: str, metric: str, samples: Sequence[Sample]) -> Groups:
    """Loads do not depend on the prompt: one group."""
    own = [sample for sample in samples if sample.model == model]
    if metric == "load_seconds":
        return {"": values_of((each for each in own if each.cold and each.cause is None), metric)}
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in usual(own):
        found[sample.prompt].append(sample)
    return {prompt: values_of(group, metric) for prompt, group in found.items()}


def _compared(model: str, metric: str, now: Groups, earlier: Groups, seed: int) -> Compared:
    both = [prompt for prompt in now if prompt in earlier]
    enough = [p for p in both if min(len(now[p]), len(earlier[p])) >= LEAST_SAMPLES and min(*now[p], *earlier[p]) > 0]
    if not enough:
        because = f"fewer than {LEAST_SAMPLES} answers of one prompt on both sides" if both else "not measured in both"
        if metric == "load_seconds":
            because = f"fewer than {LEAST_SAMPLES} loads on both sides"
        return Compared(model=model, metric=metric, verdict="no difference seen", because=because)
    ratio = _ratio([now[prompt] for prompt in enough], [earlier[prompt] for prompt in enough])
    chance = random.Random(f"{seed}/{model}/{metric}")
    drawn = [
        _ratio(
            [chance.choices(now[prompt], k=len(now[prompt])) for prompt in enough],
            [chance.choices(earlier[prompt], k=len(earlier[prompt])) for prompt in enough],
        )
        for _ in range(DRAWS)
    ]
    low, high = (quantile(drawn, share) for share in INTERVAL)
    assert low is not None and high is not None
    return Compared(
        model=model, metric=metric, verdict=_verdict(metric, ratio, low, high), ratio=ratio, low=low, high=high
    )


def _ratio(now: Sequence[Sequence[float]], earlier: Sequence[Sequence[float]]) -> float:
    logs = [log(median(after) / median(before)) for after, before in zip(now, earlier, strict=True)]
    return exp(sum(logs) / len(logs))


def _verdict(metric: str, ratio: float, low: float, high: float) -> Verdict:
    if low <= 1.0 <= high or abs(log(ratio)) < log(1 + LEAST_CHANGE_RATIO):
        return "no difference seen"
    return "faster" if (ratio > 1.0) == (metric in RATES) else "slower"
