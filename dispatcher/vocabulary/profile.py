"""What is known of models: what they are (ModelFacts), what they occupy, and how they have done here (Profiles)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatcher.vocabulary.fleet import Place

OVERHEAD_BYTES = 322_122_547  # 0.3 GiB: runner, graph and buffers (numbers.md, fixed)
LOAD_BASE_SECONDS = (
    1.5  # a load = this + file / disk rate, until one was measured; less where loads are faster than that
)
BLEND_SAMPLES = 5  # so many samples weigh as much as a prior


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What one model is. From settings (priors), then from /api/tags and /api/show as they are seen.

    kv_bytes_per_token = 2 × layers × kv_heads × head_dim × 2 (f16). capabilities: the seven of the contract, 0..1.
    """

    name: str
    file_bytes: int
    kv_bytes_per_token: int
    context_max: int
    features: frozenset[str] = frozenset()
    capabilities: Mapping[str, float] = field(default_factory=dict)
    footprint_bytes: int | None = None  # a fixed footprint from the configuration; None: predicted and learned

    def predicted_footprint_bytes(self, num_ctx: int, parallel: int) -> int:
        """file + KV × num_ctx × parallel + 0.3 GiB (numbers.md, "What the three models occupy")."""
        return self.file_bytes + self.kv_bytes_per_token * num_ctx * parallel + OVERHEAD_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A median (or decayed peak) over n samples. value None exactly when n == 0."""

    value: float | None = None
    n: int = 0


NOTHING_MEASURED = Measured()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of one (model, place), pooled over tasks: medians of the window."""

    decode_tokens_per_second: Measured = NOTHING_MEASURED
    prefill_tokens_per_second: Measured = NOTHING_MEASURED
    load_seconds: Measured = NOTHING_MEASURED
    stop_seconds: Measured = NOTHING_MEASURED
    request_seconds: Measured = NOTHING_MEASURED  # whole requests: what one in flight means as a wait


NO_RATES = Rates()


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """Of one (model, task): ok of n in the window."""

    ok: int = 0
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What was seen of one model at one task: sums of answers, the older less (0.999 per answer since).

    good, poor: a quality of 8 is 0.8 of a good answer and 0.2 of a poor one. plain: answers that nobody judged and that
    showed no fault of themselves: they speak for what was believed before, and for nothing else.
    """

    good: float = 0.0
    poor: float = 0.0
    plain: float = 0.0

    @property
    def n(self) -> float:
        return self.good + self.poor + self.plain

    @property
    def judged(self) -> float:
        return self.good + self.poor

    def bounds(self, declared: float, prior_samples: float) -> tuple[float, float]:
        """Of the posterior: its mean less and plus one standard deviation, 0..1.

        What is declared is what may be counted on: the lower bound of a Beta prior of `prior_samples` answers. So a
        model that nobody judged counts as declared, and one that was judged as it was declared counts little less.
        Plain answers pull the mean back to the prior's, and take away no doubt.
        """
        prior = _mean_above(declared, prior_samples)
        mean = (prior * (prior_samples + self.plain) + self.good) / (prior_samples + self.n)
        deviation: float = (max(0.0, mean * (1 - mean)) / (prior_samples + self.judged + 1)) ** 0.5
        return max(0.0, mean - deviation), min(1.0, mean + deviation)


def _mean_above(lower: float, samples: float) -> float:
    """The mean of the Beta of so many samples whose mean less one standard deviation is `lower`:
    m − √(m (1 − m) / (samples + 1)) = lower, solved for m."""
    weight = samples + 1
    half = 2 * lower * weight + 1
    root: float = (half**2 - 4 * (weight + 1) * weight * lower**2) ** 0.5
    return min(1.0, (half + root) / (2 * (weight + 1)))


NO_BELIEF = Belief()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How a model has done at one task for one agent, over its last requests. None: not measured.

    samples: as they weigh, the older less. quality: 0..10, as reported. seconds: of whole requests. outliers: requests
    far above the median; they count in quantiles as they are, in mean and efficiency as the limit they passed.
    """

    model: str
    task: str
    agent: str  # empty: unnamed
    samples: int
    success_ratio: float | None
    mean_seconds: float | None
    p50_seconds: float | None
    p95_seconds: float | None
    outliers: int = 0
    tokens_per_second: float | None  # decoding, as the engine timed it
    first_token_seconds: float | None
    tokens_per_busy_second: float | None  # output tokens per second that the model worked: efficiency
    quality: float | None
    updated_at_seconds: float


def measured_share(n: int) -> float:
    """Of a measurement over n samples, beside a prior."""
    return n**2 / (n**2 + BLEND_SAMPLES**2)


def blended(measured: Measured, prior: float) -> float:
    """Measurement and prior, by one weight everywhere: n² / (n² + 5²). At five samples they weigh alike, as with
    n / (n + 5); but there a prior that is wrong by half still spoilt a rate by a tenth after twenty."""
    if measured.value is None or measured.n <= 0:
        return prior
    weight = measured_share(measured.n)
    return weight * measured.value + (1 - weight) * prior


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpeed:
    """seconds per token = t0 + bytes read / bandwidth (numbers.md). n 0: the prior, never run here."""

    t0_seconds: float = 0.035
    bandwidth_bytes_per_second: float = 40e9
    prefill_factor: float = 8.0
    load_base_seconds: float = LOAD_BASE_SECONDS
    disk_bytes_per_second: float = 1e9
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """Everything learned, as of one moment. Replaced whole."""

    facts: Mapping[str, ModelFacts] = field(default_factory=dict)  # of the chain, in its order
    rates: Mapping[Place, Rates] = field(default_factory=dict)
    success: Mapping[tuple[str, str], Success] = field(default_factory=dict)
    beliefs: Mapping[tuple[str, str], Belief] = field(default_factory=dict)  # (model, task) → how good its answers are
    peaks: Mapping[tuple[str, int, int], Measured] = field(default_factory=dict)  # (model, num_ctx, parallel) → bytes
    wanted_per_second: Mapping[str, float] = field(default_factory=dict)  # model → decayed request rate
    idle_gaps_seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # model → last 200 idle gaps
    host_speed: HostSpeed = field(default_factory=HostSpeed)

    def footprint_bytes(self, model: str, num_ctx: int, parallel: int = 1) -> int:
        """What the model occupies with this context: configured, else the learned peak blended with the formula
        (`blended`). KeyError for a model outside the chain."""
        facts = self.facts[model]
        if facts.footprint_bytes is not None:
            return facts.footprint_bytes
        predicted = facts.predicted_footprint_bytes(num_ctx, parallel)
        peak = self.peaks.get((model, num_ctx, parallel), NOTHING_MEASURED)
        return round(blended(peak, predicted))
