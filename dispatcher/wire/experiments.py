"""Experiments over the API: what begins one, and what is told of them. What makes sense in a specification is
dispatcher.experiments' to say; here is only its shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from dispatcher.errors import AskInvalid
from dispatcher.vocabulary.experiment import DEFAULT_COOLDOWN_SECONDS, DEFAULT_MAX_SECONDS, Metric, Mode, Phase
from dispatcher.wire.select import MAX_JSON_DEPTH, depth_exceeds

_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$", max_length=63)]
_Ratio = Annotated[float, Meta(ge=0, le=1)]


class ArmBody(Struct, forbid_unknown_fields=True):
    """A patch of the settings in force. policy: settings of `policy`, base units. models: the chain of this arm."""

    policy: dict[str, Any] | None = None
    models: Annotated[list[str], Meta(min_length=1, max_length=64)] | None = None


class GuardrailBody(Struct, forbid_unknown_fields=True):
    """tolerance: error rate, ln seconds or quality / 10."""

    metric: Metric
    tolerance: Annotated[float, Meta(ge=0, le=10)] = 0.0


class ExperimentBody(Struct, forbid_unknown_fields=True):
    """What begins an experiment. b must differ from a; with log_latency as primary, success must be a guardrail."""

    id: _Name
    a: ArmBody | None = None
    b: ArmBody | None = None
    primary: Metric | None = "success"
    guardrails: Annotated[list[Metric | GuardrailBody], Meta(min_length=1, max_length=3)] | None = None
    mode: Mode | None = "split"
    layer: _Name | None = "default"
    traffic_ratio: Annotated[float, Meta(gt=0, le=1)] | None = 1.0
    split_ratio: Annotated[float, Meta(gt=0, lt=1)] | None = 0.5
    sticky_seconds: Annotated[float, Meta(ge=60, le=2_592_000)] | None = None
    max_seconds: Annotated[float, Meta(ge=60, le=31_536_000)] | None = DEFAULT_MAX_SECONDS
    cooldown_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] | None = DEFAULT_COOLDOWN_SECONDS


class ArmTold(Struct, kw_only=True, frozen=True):
    """missing_ratio: share of its decisions without a counted outcome; null: none was decided."""

    policy: dict[str, Any]
    models: list[str]
    assigned: int
    observed: int
    missing_ratio: float | None


class ArmMetric(Struct, kw_only=True, frozen=True):
    """value: success ratio, seconds (geometric mean) or quality of 0..10. units: effective, independent ones. clipped:
    outliers pulled to the limit."""

    n: int
    units: float
    value: float | None
    clipped: int


class MetricTold(Struct, kw_only=True, frozen=True):
    """delta: B − A of the loss (error rate, ln seconds, 1 − quality / 10): above 0, B is worse; it lies within
    low..high at every look, with 95 %. null: too few units. p is held against alpha."""

    metric: Metric
    role: Literal["primary", "guardrail", "both", "watched"]
    a: ArmMetric
    b: ArmMetric
    delta: float | None
    low: float | None
    high: float | None
    p: float | None
    alpha: float | None
    p_guardrail: float | None
    alpha_guardrail: float | None


class GuardrailTold(Struct, kw_only=True, frozen=True):
    metric: Metric
    tolerance: float


class ShadowTold(Struct, kw_only=True, frozen=True):
    """different_verdict: where only one of the two found a model at all."""

    decisions: int
    same: int
    different_model: int
    different_verdict: int


class ExperimentTold(Struct, kw_only=True, frozen=True):
    """verdict: one sentence. because: why it ended. left_out: why an outcome was not counted → how many. cooling_until:
    after a rollback, from when on the same b may be tried again."""

    id: str
    phase: Phase
    winner: Literal["A", "B"] | None
    verdict: str
    because: str
    mode: Mode
    primary: Metric
    guardrails: list[GuardrailTold]
    layer: str
    traffic_ratio: _Ratio
    split_ratio: _Ratio
    sticky_seconds: float | None
    max_seconds: float
    cooldown_seconds: float
    started_at: str | None
    ended_at: str | None
    cooling_until: str | None
    a: ArmTold
    b: ArmTold
    metrics: list[MetricTold]
    shadow: ShadowTold
    left_out: dict[str, int]


class Experiments(Struct, kw_only=True, frozen=True):
    """Running and ended ones, the newest first. awaited_decisions: whose outcome is still to come. forgotten_decisions:
    since the start, of which too many others were awaited before it came."""

    experiments: list[ExperimentTold]
    awaited_decisions: int
    forgotten_decisions: int


NO_EXPERIMENTS = Experiments(experiments=[], awaited_decisions=0, forgotten_decisions=0)


def document_from_body(body: bytes) -> object:
    """Plain values, for dispatcher.experiments.specification, which names every problem. Raises AskInvalid."""
    if depth_exceeds(body, MAX_JSON_DEPTH):
        raise AskInvalid(f"the body nests deeper than {MAX_JSON_DEPTH} levels; send it flatter")
    try:
        return msgspec.json.decode(body) if body else {}
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise AskInvalid(f"the body is not JSON: {problem}") from None
