"""Families of samples as Prometheus has them, made of plain numbers when somebody looks."""

from collections.abc import Mapping, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from stafette.kvtransfer.histogram import Histogram

OTHER = "other"

Values = float | Mapping[str, float] | Mapping[tuple[str, str], float]


def gauge(name: str, about: str, values: Values, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(name, about, labels=labels), values)


def counter(name: str, about: str, values: Values, *labels: str) -> Metric:
    """`name` is without the `_total` that Prometheus shows."""
    return _filled(CounterMetricFamily(name, about, labels=labels), values)


def histogram(
    name: str, about: str, found: Histogram, label: str | None = None, value: str = ""
) -> Metric:
    family = HistogramMetricFamily(name, about, labels=[label] if label else [])
    buckets, total = [], 0
    bounds = [*map(str, map(float, found.bounds)), "+Inf"]
    for bound, count in zip(bounds, found.counts, strict=True):
        total += count
        buckets.append((bound, total))
    family.add_metric([value] if label else [], buckets, found.sum)
    return family


def of_model(model: str, *families: Metric) -> Sequence[Metric]:
    """Label these as vLLM labels its own."""
    for family in families:
        for sample in family.samples:
            sample.labels["model_name"] = model
    return families


class Bounded:
    """Lets as many values of a label pass as are allowed; those that come later are one: other."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, value: str) -> str:
        if value in self._known:
            return value
        if len(self._known) < self._most:
            self._known.add(value)
            return value
        return OTHER


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Values) -> Metric:
    if isinstance(values, int | float):
        family.add_metric([], values)
        return family
    for names, value in sorted(values.items()):
        family.add_metric([names] if isinstance(names, str) else list(names), value)
    return family
