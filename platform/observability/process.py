"""The metrics of one process: whoever counts something says how it is told."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

Collect = Callable[[], Iterable[Metric]]


class ProcessMetrics:
    """Every sample is labelled with the process and its pool, so that those of a node can be put
    together. Used by one event loop.
    """

    def __init__(self, name: str, pool: str) -> None:
        self.name = name
        self.pool = pool
        self._labelled = _Labelled({"process": name, "pool": pool})
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._labelled)
        own = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=own)
        GCCollector(registry=own)
        self.add(own.collect)

    def add(self, collect: Collect) -> None:
        self._labelled.sources.append(collect)

    def render(self) -> bytes:
        """Return all of it as Prometheus' text."""
        return generate_latest(self._registry)


def text_of(families: Iterable[Metric]) -> bytes:
    """Return families that need no label of a process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(families))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Labelled(Collector):
    def __init__(self, labels: dict[str, str]) -> None:
        self.sources: list[Collect] = []
        self._labels = labels

    def collect(self) -> Iterable[Metric]:
        for source in self.sources:
            for family in source():
                for sample in family.samples:
                    assert not sample.labels.keys() & self._labels.keys(), sample.name
                    sample.labels.update(self._labels)
                yield family
