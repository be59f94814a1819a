"""The words of experiments: what is compared, what became of one request, what is known so far, and what is told.

Every value can be written as JSON and read again: the whole of a running experiment is one ExperimentState. How it
moves is dispatcher.experiments' business; here is only what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from dispatcher.vocabulary.status import Status

Arm = Literal["A", "B"]  # A: what is in force, or stands for it; B: what is tried
Metric = Literal["success", "log_latency", "quality"]
Mode = Literal["split", "shadow"]
Phase = Literal["running", "won", "rolled_back", "stopped", "lapsed"]
ObservedStatus = Status | Literal["refused"]  # refused: the arm's policy named no model at all
Divergence = Literal["same", "different_model", "different_verdict"]

ARMS: tuple[Arm, ...] = get_args(Arm)
METRICS: tuple[Metric, ...] = get_args(Metric)
MODES: tuple[Mode, ...] = get_args(Mode)

DAY_SECONDS = 86400.0
DEFAULT_MAX_SECONDS = 14 * DAY_SECONDS
DEFAULT_COOLDOWN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSpecification:
    """A patch of the settings in force; nothing in it: the settings as they are.

    policy: attribute of PolicySettings → its value in this arm. models: the chain of this arm, in its order; none: the
    whole chain.
    """

    policy: Mapping[str, object] = field(default_factory=dict)
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrail:
    """What B must not make worse. tolerance: by how much it may all the same, in the metric's own scale (error rate,
    ln seconds, quality / 10)."""

    metric: Metric
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """One experiment as it was asked for, whole and checked."""

    id: str
    a: ArmSpecification
    b: ArmSpecification
    primary: Metric = "success"
    guardrails: tuple[Guardrail, ...] = (Guardrail(metric="success"),)
    mode: Mode = "split"  # shadow: A decides, B is only asked what it would have done
    layer: str = "default"  # experiments of one layer never share a request
    traffic_ratio: float = 1.0  # of the layer's units that take part
    split_ratio: float = 0.5  # of those that B gets
    sticky_seconds: float | None = None  # an agent keeps its arm for so long; None: as long as the experiment runs
    max_seconds: float = DEFAULT_MAX_SECONDS  # without a verdict by then: lapsed
    cooldown_seconds: float = DEFAULT_COOLDOWN_SECONDS  # after a rollback, until B may be tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One request's part in one experiment: what an Observation is made of when its outcome comes.

    unit: what was assigned, and so what is analysed: the agent (and its period), else the request. shared: several
    requests have it.
    """

    experiment_id: str
    arm: Arm
    unit: str
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What became of one request of an experiment.

    duration_seconds: request to last byte, loads and waits included. timeout_seconds: what it was cut off at, when it
    was and somebody knows: it counts as at least that long. quality: 0..10. switch_seconds: of the duration, spent
    loading a model; switch_arm: whose decision had put that model out, None where no arm did (experiments.switches).
    """

    arm: Arm
    unit: str
    shared: bool
    status: ObservedStatus
    duration_seconds: float | None = None
    timeout_seconds: float | None = None
    quality: float | None = None
    switch_seconds: float = 0.0
    switch_arm: Arm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """One metric in one arm. Every metric is kept as a loss, less is better: error 0/1, ln seconds, 1 − quality / 10.

    x = loss − origin, which keeps the sums small where the losses are not. X: the sum of x in one unit, N: how many
    observations it has. clusters: (X, N) of the shared units by bucket; () until there is one.
    """

    origin: float = 0.0
    n: int = 0
    total: float = 0.0  # Σ X
    squares: float = 0.0  # Σ X²
    products: float = 0.0  # Σ X N
    sizes: int = 0  # Σ N²
    clusters: tuple[tuple[float, int], ...] = ()
    clipped: int = 0  # outliers that were pulled to the limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Where the log latencies of both arms lie: Welford's mean and sum of squared deviations, of the clipped values."""

    n: int = 0
    mean: float = 0.0
    deviations: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A log latency that waits until there are enough to tell what an outlier is."""

    arm: Arm
    unit: str
    shared: bool
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTally:
    """All that is known of one arm. debts_seconds: loads it has caused to the other arm and not paid for yet, the
    oldest first."""

    assigned: int = 0
    observed: int = 0
    success: Sums = field(default_factory=Sums)
    log_latency: Sums = field(default_factory=Sums)
    quality: Sums = field(default_factory=Sums)
    debts_seconds: tuple[float, ...] = ()
    charged_seconds: float = 0.0  # of such loads, in all


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowTally:
    """How often the silent arm would have done the same."""

    same: int = 0
    different_model: int = 0
    different_verdict: int = 0

    @property
    def n(self) -> int:
        return self.same + self.different_model + self.different_verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentState:
    """One experiment as of its last observation. p: the always-valid p-values; they only fall.

    slice_start_ratio: where its share of the layer begins. p_guardrails: in the order of the specification.
    left_out: why an outcome was not counted → how many.
    """

    specification: Specification
    started_at_seconds: float
    slice_start_ratio: float = 0.0
    phase: Phase = "running"
    ended_at_seconds: float | None = None
    winner: Arm | None = None
    because: str = ""
    a: ArmTally = field(default_factory=ArmTally)
    b: ArmTally = field(default_factory=ArmTally)
    spread: Spread = field(default_factory=Spread)
    held: tuple[Held, ...] = ()
    p_primary: float = 1.0
    p_guardrails: tuple[float, ...] = ()
    shadow: ShadowTally = field(default_factory=ShadowTally)
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.specification.id


# ── events ──


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmObserved:
    """One outcome was counted for an arm (dispatcher_experiment_samples_total)."""

    at_seconds: float
    experiment_id: str
    arm: Arm


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentTurned:
    """An experiment began or ended; after `rolled_back` its B gets no request any more. metric: that decided it."""

    at_seconds: float
    experiment_id: str
    before: Phase | Literal["none"]
    after: Phase
    because: str
    winner: Arm | None = None
    metric: Metric | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadowed:
    """A request was decided a second time, silently (dispatcher_shadow_decisions_total). model: what B would have
    taken; None: nothing."""

    at_seconds: float
    experiment_id: str
    decision_id: str
    divergence: Divergence
    model: str | None


ExperimentEvent = ArmObserved | ExperimentTurned | Shadowed
