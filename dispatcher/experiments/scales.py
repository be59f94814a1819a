"""From losses back to what people read: a success ratio, a typical number of seconds, a quality of 0..10."""

from __future__ import annotations

from math import exp

from dispatcher.experiments.sums import mean
from dispatcher.vocabulary.experiment import ExperimentState, Metric, Sums


def natural(metric: Metric, loss: float) -> float:
    """Success ratio, seconds (the geometric mean: of log-normal seconds the median), or quality of 0..10."""
    match metric:
        case "success":
            return 1 - loss
        case "log_latency":
            return exp(loss)
        case "quality":
            return 10 * (1 - loss)


def level(metric: Metric, sums: Sums) -> float | None:
    """None: nothing observed."""
    loss = mean(sums)
    return None if loss is None else natural(metric, loss)


def in_words(state: ExperimentState, metric: Metric) -> str:
    """Both arms: `A 97.9 % of 812, B 93.8 % of 790`."""
    arms = (("A", getattr(state.a, metric)), ("B", getattr(state.b, metric)))
    return ", ".join(f"{arm} {_words(metric, level(metric, sums))} of {sums.n}" for arm, sums in arms)


def _words(metric: Metric, value: float | None) -> str:
    if value is None:
        return "unknown"
    return {"success": f"{100 * value:.1f} %", "log_latency": f"{value:.3g} s", "quality": f"{value:.1f}/10"}[metric]
