"""What a fleet's front tells Prometheus. docs/operations.md has the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tessera_gateway.fleet.book import Choice
from tessera_gateway.fleet.peek import Peek

OUTCOMES = ("done", "refused", "unavailable", "lost", "cancelled")
"""Drawn; answered with an error; not taken by the worker; its connection ended; given up."""

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 10)


@dataclass
class State:
    """Of the fleet at one moment.

    Attributes:
        workers: number of workers by state.
        held: requests that wait for a first worker.
        seconds: predicted work by worker.
        scales: learned scale by worker and path.
        weights: of what is missing, in milliseconds, as learned.
    """

    workers: dict[str, int] = field(default_factory=dict)
    held: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    scales: dict[tuple[str, str], float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


class FleetMetrics:
    """Of one front.

    Args:
        state: tells the fleet's state when it is asked for metrics.
    """

    def __init__(self, state: Callable[[], State]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tessera_fleet_requests",
            "requests that were sent to a worker, by how they ended",
            ("worker", "outcome"),
            registry=self.registry,
        )
        self._retries = Counter(
            "tessera_fleet_retries",
            "requests that were sent to a second worker",
            registry=self.registry,
        )
        self._copies = Counter(
            "tessera_fleet_copies",
            "copies of templates on further workers",
            ("reason", "outcome"),
            registry=self.registry,
        )
        self._needs = Counter(
            "tessera_fleet_needs",
            "what requests needed, by whether the chosen worker had it",
            ("need", "found"),
            registry=self.registry,
        )
        self._predicted = Histogram(
            "tessera_fleet_predicted_seconds",
            "predicted time until a picture is done",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._ratios = Histogram(
            "tessera_fleet_error_ratio",
            "how many times as long as predicted a picture took",
            ("path",),
            buckets=_RATIOS,
            registry=self.registry,
        )
        self.registry.register(_Gauges(state))

    def chosen(self, peek: Peek, choice: Choice) -> None:
        """A request is sent to a worker."""
        if peek.draws:
            prediction = choice.prediction
            self._predicted.labels(prediction.path).observe(1e-3 * prediction.total)
            for need, found in prediction.needs(peek).items():
                self._needs.labels(need, "yes" if found else "no").inc()

    def ended(self, worker: str, outcome: str) -> None:
        """A request has ended; see `OUTCOMES`."""
        self._requests.labels(worker, outcome).inc()

    def took(self, path: str, ratio: float) -> None:
        """A picture took so many times as long as predicted."""
        self._ratios.labels(path).observe(ratio)

    def again(self) -> None:
        """A request is sent to a second worker."""
        self._retries.inc()

    def copied(self, reason: str, outcome: str) -> None:
        """A template was copied to one more worker, asked or hot, done or failed."""
        self._copies.labels(reason, outcome).inc()

    def forget(self, worker: str) -> None:
        """A worker is gone for good."""
        self._requests.remove_by_labels({"worker": worker})

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """What is asked for at the moment of a scrape."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """See the class."""
        state = self._state()
        workers = GaugeMetricFamily("tessera_fleet_workers", "workers by state", labels=["state"])
        for name, count in state.workers.items():
            workers.add_metric([name], count)
        seconds = GaugeMetricFamily(
            "tessera_fleet_work_seconds",
            "predicted work of a worker: what runs, waits and is on its way",
            labels=["worker"],
        )
        for worker, work in state.seconds.items():
            seconds.add_metric([worker], work)
        scales = GaugeMetricFamily(
            "tessera_fleet_scale",
            "what a worker's costs are multiplied by, as learned",
            labels=["worker", "path"],
        )
        for (worker, path), scale in state.scales.items():
            scales.add_metric([worker, path], scale)
        held = GaugeMetricFamily(
            "tessera_fleet_held", "requests that wait for a first worker", value=state.held
        )
        weights = GaugeMetricFamily(
            "tessera_fleet_weight_seconds",
            "what it costs that something is missing, as learned",
            labels=["weight"],
        )
        for name, ms in state.weights.items():
            weights.add_metric([name], 1e-3 * ms)
        return (workers, held, seconds, scales, weights)
