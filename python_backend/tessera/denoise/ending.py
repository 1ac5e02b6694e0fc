"""What a request's stats say once its steps are done. Knows no Triton."""

from __future__ import annotations

import time

from tessera.contract import Stats
from tessera.denoise.running import Running


def final_stats(running: Running) -> Stats:
    """The stats of a request, with what only its end tells."""
    stats, plan, now = running.stats, running.plan, time.monotonic()
    stats.denoise_ms = 1e3 * (now - (running.started or now) - running.paused_s)
    before = 1e3 * (now - plan.started) - stats.denoise_ms
    stats.queue_ms = max(0.0, before - plan.encode_ms)
    stats.control_load_ms = plan.control_load_ms
    stats.refit_ms += plan.text_refit_ms
    stats.mode = _mode(running)
    if plan.adapters:
        stats.lora_path = _lora_path(stats)
    else:
        stats.adapted_at = None
    return stats


def _mode(running: Running) -> str:
    """How it was denoised: `mixed` if there were dense steps behind the first sparse one that its
    quality did not ask for, since its recording was not yet there, or lost.
    """
    if not running.stats.sparse_ticks:
        return "dense"
    if running.sparse is None:
        return "mixed"
    steps = list(zip(running.sparse.kinds, running.sparse.planned, strict=True))
    first = steps.index((True, True))
    return "sparse" if all(sparse or not planned for sparse, planned in steps[first:]) else "mixed"


def _lora_path(stats: Stats) -> str:
    """How a request got the LoRAs of its UNet."""
    if not stats.side_ticks:
        return "refit"
    return "side" if stats.side_ticks == stats.ticks else "mixed"
