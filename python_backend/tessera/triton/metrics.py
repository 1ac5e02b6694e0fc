"""What a server tells Prometheus: fills in `tessera.shared.metrics.TABLE`.

A model's process observes what it does. Ends of jobs are on the board, since a job may be lost
without any process of ours, and are counted from there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from tessera.contract import Info
from tessera.plan import Plan
from tessera.shared import load
from tessera.shared.board import Board
from tessera.shared.metrics import PREFIX, TABLE, Kind
from tessera.shared.processes import WARM_UP
from tessera.shared.settings import ServerSettings
from tessera.triton import pb

EVERY_S = 1.0
"""How often what the board has is published."""


class Metrics:
    """The series of this process. A server without metrics (`--allow-metrics=false`) takes none."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, ...], pb.Series] = {}
        self._told: dict[tuple[str, ...], float] = {}
        self._off = False

    def make_all(self) -> None:
        """Have the server export every series: one that began with its first event would hide that
        from `rate()`.
        """
        for name, metric in TABLE.items():
            for labels in metric.series():
                self._of(name, labels)

    def count(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        if by > 0 and (series := self._of(name, labels)):
            series.increment(by)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        if series := self._of(name, labels):
            series.observe(value)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Say a gauge's value, if it is another than the last that this process said."""
        key = (name, *labels.values())
        if value != self._told.get(key) and (series := self._of(name, labels)):
            series.set(value)
            self._told[key] = value

    def count_up_to(self, name: str, total: float, **labels: str) -> None:
        """Add to a counter what this process has counted since the last time."""
        key = (name, *labels.values())
        self.count(name, total - self._told.get(key, 0.0), **labels)
        self._told[key] = total

    def _of(self, name: str, labels: Mapping[str, str]) -> pb.Series | None:
        key = (name, *labels.values())
        if key not in self._series and not self._off:
            metric = TABLE[name]
            kind, bounds = metric.kind, metric.bounds
            try:
                made = pb.metric(f"{PREFIX}{name}", metric.text, kind, labels, bounds)
                self._series[key] = made
            except Exception as error:  # the backend's own type, which it does not export
                pb.log(f"there are no metrics of this process: {error}")
                self._off = True
        return self._series.get(key)


def observe_picture(metrics: Metrics, plan: Plan, info: Info) -> None:
    """The times of a picture that is done, unless it is one of the server's own first."""
    if plan.job_id.startswith(WARM_UP):
        return
    kind = Kind.EDIT if plan.template else Kind.GENERATE
    metrics.observe("request_latency_seconds", info.total_ms / 1e3, kind=kind)
    metrics.observe("queue_time_seconds", info.queue_ms / 1e3)
    for stage in TABLE["stage_seconds"].labels["stage"]:
        metrics.observe("stage_seconds", getattr(info, f"{stage}_ms") / 1e3, stage=stage)
    if plan.mask_ratio is not None:
        metrics.observe("mask_ratio", plan.mask_ratio)


class BoardMetrics:
    """Publishes once a second what the board has, from a thread: nobody may ask for anything, and
    the figures still have to change.

    Args:
        settings: the server's.
        board: its jobs.
    """

    def __init__(self, settings: ServerSettings, board: Board) -> None:
        self._settings = settings
        self._board = board
        self._metrics = Metrics()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ending.set()

    def publish(self) -> None:
        """What has changed since any process has published."""
        ends, saved = self._board.new_ends()
        for (kind, outcome), count in ends.items():
            self._metrics.count("requests_total", count, kind=kind, outcome=outcome)
        self._metrics.count("cancelled_steps_saved_total", saved)
        running, queued, slots = self._board.occupancy()
        for name, value in (("running", running), ("queued", queued), ("slots", slots)):
            self._metrics.set(name, value)
        loras = load.read(self._settings.load).get("loras", {})
        self._metrics.set("lora_loaded", len(loras.get("parsed", ())))

    def _run(self) -> None:
        self._metrics.make_all()
        said = ""
        while not self._ending.wait(EVERY_S):
            try:
                self.publish()
                said = ""
            except Exception as error:
                if repr(error) != said:  # once, however long it lasts
                    said = repr(error)
                    pb.log(f"metrics could not be published: {said}")
