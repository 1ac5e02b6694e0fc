"""The table of what a server counts and measures for Prometheus. The models fill it in (see
`tessera.triton.metrics`); docs, dashboard and alerts are compared with it. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product

from tessera.errors import TimedOut

PREFIX = "tessera_"
WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds in seconds of what takes as long as a request or a part of one."""
CALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Likewise of one call of the UNet."""
SHARES = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


class Kind(StrEnum):
    """What a request makes."""

    GENERATE = "generate"
    EDIT = "edit"


class Outcome(StrEnum):
    """How a request ended.

    Only `FAILED` is a fault of the server. `REFUSED` is the caller's: a value that is not accepted.
    `TIMED_OUT` is a deadline that was over, `UNAVAILABLE` a full queue, a process that is being
    restarted, or a server that is being stopped.
    """

    DONE = "done"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"

    @classmethod
    def of(cls, error: Exception) -> Outcome:
        """Of a request that an error has ended."""
        if isinstance(error, TimedOut):
            return cls.TIMED_OUT
        return _BY_STATUS.get(getattr(error, "status", ""), cls.FAILED)


_BY_STATUS = {
    "INVALID_ARG": Outcome.REFUSED,
    "NOT_FOUND": Outcome.REFUSED,
    "CANCELLED": Outcome.CANCELLED,
    "UNAVAILABLE": Outcome.UNAVAILABLE,
}


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        kind: counter, gauge or histogram.
        text: what it counts or measures.
        labels: every value that each label has.
        bounds: of a histogram's buckets.
    """

    kind: str
    text: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bounds: tuple[float, ...] = ()

    def series(self) -> Iterator[dict[str, str]]:
        """Every combination of labels."""
        for values in product(*self.labels.values()):
            yield dict(zip(self.labels, values, strict=True))


_KIND = {"kind": tuple(Kind)}
_TIER = {"tier": ("device", "memory")}

TABLE: dict[str, Metric] = {
    "requests_total": Metric(
        "counter", "requests that have ended", _KIND | {"outcome": tuple(Outcome)}
    ),
    "running": Metric(
        "gauge", "requests that are denoised or decoded, also while they have no slot"
    ),
    "queued": Metric(
        "gauge", "requests that wait for their first slot, without edits in Triton's queue"
    ),
    "slots": Metric("gauge", "requests that can be denoised at once"),
    "request_latency_seconds": Metric(
        "histogram", "from `encode` to the picture, of requests that are done", _KIND, WAITS
    ),
    "queue_time_seconds": Metric(
        "histogram",
        "from the end of `encode` to the first step, and the time without a slot after it",
        bounds=WAITS,
    ),
    "stage_seconds": Metric(
        "histogram",
        "time of a request in a stage",
        {"stage": ("encode", "denoise", "decode")},
        WAITS,
    ),
    "step_seconds": Metric(
        "histogram",
        "one call of the UNet for all requests that share it",
        {"path": ("dense", "sparse", "side", "control")},
        CALLS,
    ),
    "batch_rows_total": Metric("counter", "rows of all such calls: two for a guided request"),
    "lora_switches_total": Metric("counter", "other LoRAs put into the UNet"),
    "lora_switch_seconds": Metric("histogram", "how long one such switch took", bounds=WAITS),
    "lora_loaded": Metric("gauge", "LoRAs whose files are in the UNet's memory"),
    "template_hits_total": Metric("counter", "recorded steps that were in the tier", _TIER),
    "template_misses_total": Metric("counter", "recorded steps that were not", _TIER),
    "template_evictions_total": Metric("counter", "recorded steps that left for others", _TIER),
    "template_bytes": Metric(
        "gauge", "recorded steps in the tier", {"tier": (*_TIER["tier"], "disk")}
    ),
    "control_loads_total": Metric("counter", "ControlNets that were loaded for a request"),
    "cancelled_steps_saved_total": Metric(
        "counter", "steps that cancelled and timed-out requests did not run"
    ),
    "mask_ratio": Metric("histogram", "share of an edit's pixels that may change", {}, SHARES),
}
"""By name, without `PREFIX`."""
