"""The catalogue's metrics as prometheus_client's families, and which label sets are there from the start."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import product

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from exporter.catalogue import Metric
from exporter.labels import DECIDED_MODEL, FROM, MODEL, NO_MODEL, OTHER, OUTCOME, PLACE, STATUS, TO

MAX_OBSERVED = 1e9  # seconds or a ratio; more is a report that is wrong, and would drown every other in the sum

Counts = dict[tuple[str, ...], float]


class Histogram:
    """Mutable. counts: per bucket, not cumulative; the last is beyond the highest bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float | None) -> None:
        """None (not said), NaN and absurd values are no observations."""
        if value is None or not abs(value) <= MAX_OBSERVED:
            return
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        seen, answer = 0, []
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            seen += count
            answer.append(("+Inf" if bound == math.inf else repr(float(bound)), float(seen)))
        return answer


def label_sets(metric: Metric, models: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    """All that can be known beforehand: none where a label's words are not."""
    words = {label.name: label.values if label.values is not None else () for label in metric.labels}
    for label in (MODEL, FROM, TO):
        if label in metric.labels:
            words[label.name] = models
    if STATUS in metric.labels:  # a request that came to no model is nothing unusual
        words[MODEL.name] = (*models, OTHER)
    if DECIDED_MODEL in metric.labels:  # the outcome `none`, and only it, goes with no model
        named = tuple(outcome for outcome in OUTCOME.values or () if outcome != "none")
        yield from product(models, words["task"], words["complexity"], named)
        yield from product((NO_MODEL,), words["task"], words["complexity"], ("none",))
        return
    if PLACE in metric.labels:
        return
    for labels in product(*(words[name] for name in metric.label_names)):
        if FROM not in metric.labels or labels[0] != labels[1]:
            yield labels


def counter_family(metric: Metric, counts: Counts) -> Family:
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.label_names, unit=metric.unit)
    for labels, value in counts.items():
        family.add_metric(labels, value)
    return family


def gauge_family(metric: Metric, values: Iterable[tuple[tuple[str, ...], float]]) -> Family:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.label_names, unit=metric.unit)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def histogram_family(metric: Metric, histograms: Mapping[tuple[str, ...], Histogram]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.label_names, unit=metric.unit)
    for labels, histogram in histograms.items():
        family.add_metric(labels, buckets=histogram.cumulative(), sum_value=histogram.total)
    return family
