"""What `denoise` tells Prometheus: its calls of the UNet, its LoRAs, its recorded steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tessera.denoise.running import Running
from tessera.shared.processes import WARM_UP
from tessera.templates.memory import Counters
from tessera.triton.metrics import Metrics


class StepMetrics:
    """What `denoise` does; the server's own first pictures are left out.

    Args:
        metrics: takes it.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._calls: list[tuple[str, float, int]] = []

    def call(self, group: Sequence[Running], seconds: float) -> None:
        """See `denoise.tick.Meter`. `flush` publishes it."""
        first = group[0]
        if all(request.plan.job_id.startswith(WARM_UP) for request in group):
            return
        path = "sparse" if first.goes_sparsely else "side" if first.side else "dense"
        if any(request.controls_now for request in group):
            path = "control"
        self._calls.append((path, seconds, sum(request.branches for request in group)))

    def flush(self) -> None:
        """Publish the calls up to now. Each value is a call to tritonserver: 16 to 60 microseconds,
        and 70 right behind an engine, which leaves cold caches.
        """
        for path, seconds, _ in self._calls:
            self._metrics.observe("step_seconds", seconds, path=path)
        if self._calls:
            self._metrics.count("batch_rows_total", sum(rows for _, _, rows in self._calls))
        self._calls.clear()

    def switched(self, milliseconds: float) -> None:
        """Other LoRAs are in the UNet now."""
        self._metrics.count("lora_switches_total")
        self._metrics.observe("lora_switch_seconds", milliseconds / 1e3)

    def tiers(self, tiers: Mapping[str, Counters]) -> None:
        """Publish how the tiers of recorded steps do."""
        for tier, counters in tiers.items():
            for name in ("hits", "misses", "evictions"):
                total = getattr(counters, name)
                self._metrics.count_up_to(f"template_{name}_total", total, tier=tier)
            self._metrics.set("template_bytes", counters.bytes, tier=tier)
