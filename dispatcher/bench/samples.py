"""What was measured: one Sample per request, and the statistics of many. Pure: no clock, no socket.

What counts for what:
- a median (seconds, first token, tokens/s) is that of warm good answers without outliers;
- a p95 (of rates a p5) is that of warm good answers with them: it is there to show the slow ones;
- cold is the first answer after a load, told apart: a load is paid once, not per request;
- an outlier is a warm good answer that took more than 3 × the median of the same model and prompt, where at least 4
  such answers are known. It stays in the data.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

OUTLIER_FACTOR = 3.0  # × the median of the same model and prompt
OUTLIER_MIN_SAMPLES = 4
COLD_LOAD_SECONDS = 1.0  # a load reported longer than this makes an answer cold, whoever said the model was loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request. Seconds are wall-clock as the caller saw them, but for what the engine times itself: decode rate and
    load. None: not known. cause: None for a good answer. warming: of the warm-up, in no statistic of warm answers."""

    model: str
    prompt: str
    task: str
    iteration: int
    warming: bool = False
    cold: bool = False
    cause: str | None = None
    detail: str = ""
    seconds: float | None = None
    first_token_seconds: float | None = None
    load_seconds: float | None = None
    tokens_per_second: float | None = None
    prefill_tokens_per_second: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    outside_seconds: float | None = None  # of it, not in the engine: gateway, network, start of a container


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """None: nothing was measured."""

    median: float | None = None
    p5: float | None = None
    p95: float | None = None
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of one model. asked: without the warm-up, but for what failed of it. n of a Spread: what its p95 rests on. cold:
    the first answers after a load, those of the warm-up, too. stopped: why not all was asked; None: all was."""

    model: str
    asked: int
    ok: int
    errors: Mapping[str, int]
    warm: int
    cold: int
    outliers: int
    seconds: Spread
    first_token_seconds: Spread
    tokens_per_second: Spread
    prefill_tokens_per_second: Spread
    outside_seconds: Spread
    cold_seconds: Spread
    load_seconds: Spread
    task_seconds: Mapping[str, float]
    stopped: str | None = None

    @property
    def success_ratio(self) -> float | None:
        return self.ok / self.asked if self.asked else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    sample: Sample
    median_seconds: float


def is_warm(sample: Sample) -> bool:
    return sample.cause is None and not sample.cold and not sample.warming


def outliers(samples: Iterable[Sample]) -> list[Outlier]:
    """In the order they came."""
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if is_warm(sample) and sample.seconds is not None:
            groups[sample.model, sample.prompt].append(sample)
    found = []
    for group in groups.values():
        middle = median(sample.seconds or 0.0 for sample in group)
        if len(group) >= OUTLIER_MIN_SAMPLES:
            slow = [each for each in group if (each.seconds or 0.0) > OUTLIER_FACTOR * middle]
            found += [Outlier(sample=each, median_seconds=middle) for each in slow]
    return found


def usual(samples: Sequence[Sample]) -> list[Sample]:
    """Warm good answers without the outliers: what medians are of."""
    odd = {id(outlier.sample) for outlier in outliers(samples)}
    return [sample for sample in samples if is_warm(sample) and id(sample) not in odd]


def quantile(values: Sequence[float], share: float) -> float | None:
    """Linear between the two next values; of one value, that value."""
    if not values:
        return None
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def values_of(samples: Iterable[Sample], field: str) -> list[float]:
    return [value for sample in samples if (value := getattr(sample, field)) is not None]


def spread(usual_ones: Iterable[Sample], all_of_them: Iterable[Sample], field: str) -> Spread:
    middle, everything = values_of(usual_ones, field), values_of(all_of_them, field)
    return Spread(
        median=median(middle) if middle else None,
        p5=quantile(everything, 0.05),
        p95=quantile(everything, 0.95),
        n=len(everything),
    )


def summary(model: str, samples: Iterable[Sample], stopped: str | None = None) -> Summary:
    own = [sample for sample in samples if sample.model == model]
    counted = [sample for sample in own if not sample.warming or sample.cause is not None]
    warm = [sample for sample in own if is_warm(sample)]
    cold = [sample for sample in own if sample.cold and sample.cause is None]
    middle = usual(own)
    tasks: dict[str, list[float]] = defaultdict(list)
    for sample in middle:
        if sample.seconds is not None:
            tasks[sample.task].append(sample.seconds)
    return Summary(
        model=model,
        asked=len(counted),
        ok=sum(sample.cause is None for sample in counted),
        errors=dict(sorted(Counter(sample.cause for sample in counted if sample.cause is not None).items())),
        warm=len(warm),
        cold=len(cold),
        outliers=len(warm) - len(middle),
        seconds=spread(middle, warm, "seconds"),
        first_token_seconds=spread(middle, warm, "first_token_seconds"),
        tokens_per_second=spread(middle, warm, "tokens_per_second"),
        prefill_tokens_per_second=spread(middle, warm, "prefill_tokens_per_second"),
        outside_seconds=spread(middle, warm, "outside_seconds"),
        cold_seconds=spread(cold, cold, "seconds"),
        load_seconds=spread(cold, cold, "load_seconds"),
        task_seconds={task: median(values) for task, values in sorted(tasks.items())},
        stopped=stopped,
    )
