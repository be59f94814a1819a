"""The page's experiments: what each arm has done, in numbers and one sentence. An experiment ends by hand elsewhere."""

from __future__ import annotations

from dispatcher.api.page.markup import Markup, element
from dispatcher.api.page.words import cut, duration, number, plural, told_list
from dispatcher.wire.experiments import ArmTold, Experiments, ExperimentTold, MetricTold

MOST_SHOWN = 6
_PHASES = {"rolled_back": "rolled back"}
_NAMES = {"success": "success", "log_latency": "latency", "quality": "quality"}
_NONE = "None is running. An experiment lets a share of the requests be decided by a second policy, and compares."


def experiments(told: Experiments) -> list[Markup]:
    """Those that run first, then the newest that have ended."""
    if not told.experiments:
        return [element("p", _NONE, class_="quiet")]
    running = [one for one in told.experiments if one.phase == "running"]
    ended = [one for one in told.experiments if one.phase != "running"]
    shown = [*running, *ended][:MOST_SHOWN]
    more = len(told.experiments) - len(shown)
    rest = [element("p", f"{plural(more, 'older one')}: GET /experiments.", class_="quiet small")] if more else []
    return [element("ul", *(_experiment(one) for one in shown), class_="rows"), *rest]


def _experiment(one: ExperimentTold) -> Markup:
    phase = _PHASES.get(one.phase, one.phase)
    head = f"{phase}, {one.winner} is better" if one.winner is not None else phase
    when = f"since {_day_and_time(one.started_at)}" if one.ended_at is None else f"at {_day_and_time(one.ended_at)}"
    return element(
        "li",
        element("strong", cut(one.id, 63)),
        element("span", f"{one.mode}, {head} {when}"),
        element("span", cut(one.verdict)),
        *_numbers(one),
        data_key=one.id,
    )


def _day_and_time(at: str | None) -> str:
    """It may have been days ago. UTC."""
    return (at or "")[:16].replace("T", " ")


def _numbers(one: ExperimentTold) -> list[Markup]:
    """Nothing for a shadow: its sentence has them all."""
    if one.mode == "shadow":
        return []
    lines = [f"{name}: {_arm(arm)}" for name, arm in (("A", one.a), ("B", one.b))]
    lines += [_metric(metric) for metric in one.metrics if metric.role != "watched" or metric.a.n or metric.b.n]
    return [element("span", line, class_="quiet small") for line in lines]


def _arm(arm: ArmTold) -> str:
    changes = [f"{name} {value}" for name, value in arm.policy.items()]
    changes += [f"models {told_list(arm.models)}"] if arm.models else []
    words = "as in force" if not changes else told_list(changes)
    missing = "" if not arm.missing_ratio else f", {arm.missing_ratio:.0%} without an outcome"
    return f"{words}; {plural(arm.assigned, 'request')}{missing}"


def _metric(metric: MetricTold) -> str:
    a, b = (f"{_value(metric.metric, arm.value)} of {arm.n}" for arm in (metric.a, metric.b))
    return f"{_NAMES[metric.metric]} ({metric.role}): A {a}, B {b}"


def _value(metric: str, value: float | None) -> str:
    if value is None or metric == "log_latency":
        return duration(value)
    return f"{value:.1%}" if metric == "success" else number(value)
