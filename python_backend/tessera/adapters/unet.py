"""LoRAs in the `denoise` model: an `AdapterSwitch`, opened in the background and used from the
first request with a LoRA on.

Knows bundles and engines, nothing of Triton.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tessera.adapters.prefetch import PrefetchListener
from tessera.adapters.switch import AdapterSwitch
from tessera.denoise.running import Running
from tessera.denoise.tick import Controls, Observer, Predict, Sparse, tick
from tessera.engines.base import Engine
from tessera.engines.bundle import Bundle
from tessera.plan import AdapterUse
from tessera.shared.settings import ServerSettings


class UNetAdapters:
    """Runs ticks of requests that may have different LoRAs.

    Args:
        bundle: the server's.
        engines: of the UNet, by graph.
        settings: the server's.
        slots: requests that are denoised at a time.
        log: writes a line into the server's log.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        settings: ServerSettings,
        *,
        slots: int,
        log: Callable[[str], None],
    ) -> None:
        def open_switch() -> AdapterSwitch:
            return AdapterSwitch.of_bundle(bundle, engines, settings.adapters, slots=slots)

        self._switch: Future[AdapterSwitch] = ThreadPoolExecutor(1).submit(open_switch)
        self._used = False
        try:
            self._hints = PrefetchListener(settings.board, self._read_ahead_of_queue)
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
