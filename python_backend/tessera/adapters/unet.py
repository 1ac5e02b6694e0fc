"""LoRAs in the `denoise` model: an `AdapterSwitch`, opened in the background and used from the
first request with a LoRA on.

Knows bundles and engines, nothing of Triton.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from tessera.adapters.prefetch import PrefetchListener
from tessera.adapters.settings import AdapterSettings
from tessera.denoise.running import Running
from tessera.denoise.tick import Controls, Observer, Predict, Sparse, tick
from tessera.engines.base import Engine
from tessera.engines.bundle import Bundle
from tessera.plan import AdapterUse
from tessera.shared.board import board_path

if TYPE_CHECKING:
    from tessera.adapters.switch import AdapterSwitch


class UNetAdapters:
    """Runs ticks of requests that may have different LoRAs.

    Args:
        bundle: the server's bundle.
        engines: engines of its UNet, by graph.
        slots: number of requests that are denoised at a time.
        log: writes a line to the server's log.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        *,
        slots: int,
        log: Callable[[str], None],
    ) -> None:
        settings = AdapterSettings.from_environment()

        def open_switch() -> AdapterSwitch:
            from tessera.adapters.switch import AdapterSwitch  # imports diffusers' loaders: seconds

            return AdapterSwitch.of_bundle(bundle, engines, settings, slots=slots)

        self._switch: Future[AdapterSwitch] = ThreadPoolExecutor(1).submit(open_switch)
        self._used = False
        try:
            self._listener = PrefetchListener(board_path(), self._read_ahead_of_queue)
        except OSError as error:
            log(f"LoRAs of queued requests are not read ahead: {error}")

    def read_ahead(self, adapters: tuple[AdapterUse, ...]) -> None:
        """Start reading the adapters of a request."""
        if adapters:
            self._switch.result().read_ahead(adapters)

    def _read_ahead_of_queue(self, adapters: tuple[AdapterUse, ...]) -> None:
        self._switch.result().read_ahead(adapters, queued=True)

    def tick(
        self,
        running: Sequence[Running],
        predict: Predict,
        number: int,
        *,
        sparse: Sparse | None,
        observer: Observer | None,
        controls: Controls | None,
    ) -> None:
        """See `denoise.tick.tick`. Requests whose adapter set is not on turn are skipped."""
        self._used = self._used or any(request.plan.adapters for request in running)
        if not self._used:
            tick(running, predict, number, sparse=sparse, observer=observer, controls=controls)
            return
        switch = self._switch.result()
        turn, predict = switch.choose(running, predict)
        began = time.perf_counter()
        tick(turn, predict, number, sparse=sparse, observer=observer, controls=controls)
        if turn:
            switch.add_tick(1e3 * (time.perf_counter() - began))
