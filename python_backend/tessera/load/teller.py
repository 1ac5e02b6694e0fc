"""The side of `denoise`: what runs, and what is in its memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from tessera.adapters.unet import UNetAdapters
from tessera.denoise.running import Running
from tessera.edits.chooser import StepChooser
from tessera.edits.steps import SparseSteps
from tessera.shared import load
from tessera.shared.load import RunningLoad
from tessera.shared.settings import ServerSettings

EVERY_S = 0.1
"""While the same requests run, `denoise` publishes this often."""


class LoadTeller:
    """Publishes.

    Args:
        settings: the server's.
        slots: requests that are denoised at a time.
        adapters: the UNet's LoRAs.
        sparse, chooser: the token-sparse UNet's, if the bundle has one.
    """

    def __init__(
        self,
        settings: ServerSettings,
        slots: int,
        adapters: UNetAdapters,
        sparse: SparseSteps | None,
        chooser: StepChooser | None,
    ) -> None:
        self._path = settings.load
        self._slots = slots
        self._adapters = adapters
        self._sparse = sparse
        self._chooser = chooser
        self._told: tuple[frozenset[int], float] | None = None

    def tell(self, running: Mapping[int, Running]) -> None:
        """Publish, if other requests run than last time, or that was some time ago. What cannot be
        written is left out.
        """
        now, present = time.monotonic(), frozenset(running)
        if self._told and self._told[0] == present and now - self._told[1] < EVERY_S:
            return
        self._told = (present, now)
        with contextlib.suppress(OSError):  # a full /dev/shm is no reason to fail a request
            load.write(self._path, self._content(running))

    def _content(self, running: Mapping[int, Running]) -> dict[str, Any]:
        content: dict[str, Any] = {
            "slots": self._slots,
            "running": [vars(_running(request)) for request in running.values()],
            "loras": vars(self._adapters.load()),
        }
        if self._chooser:
            content["lines"] = self._chooser.load()
        if self._sparse:
            memory = self._sparse.memory
            content |= {"read_ms": round(memory.read_ms, 3), "memory": memory.held}
        return content


def _running(request: Running) -> RunningLoad:
    steps = request.sampler.evaluations
    kinds = request.sparse.kinds[request.step :] if request.sparse else ()
    return RunningLoad(
        job=request.plan.job_id,
        left=steps - request.step,
        sparse=sum(kinds),
        branches=request.branches,
        height=int(request.latents.shape[2]),
        width=int(request.latents.shape[3]),
        active=request.sparse.active_latents if request.sparse else 0,
        loras=tuple(sorted((use.name, use.weight) for use in request.plan.adapters)),
        controls=tuple(use.name for use in request.plan.controls),
    )
