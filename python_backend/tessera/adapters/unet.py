"""LoRAs in the `denoise` model: an `AdapterSwitch`, opened in the background and used from the
first request with a LoRA on.

Knows bundles and engines, nothing of Triton.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from tessera.adapters.prefetch import PrefetchListener
from tessera.adapters.switch import AdapterSwitch
from tessera.denoise.opening import OpenUNet
from tessera.denoise.running import Running
from tessera.denoise.tick import Controls, Meter, Observer, Predict, Sparse, tick
from tessera.engines.base import Refittable
from tessera.engines.bundle import Bundle
from tessera.plan import AdapterUse
from tessera.shared.load import LoraLoad
from tessera.shared.settings import ServerSettings


class UNetAdapters:
    """Runs ticks of requests that may have different LoRAs.

    Args:
        bundle: the server's.
        unet: its UNet.
        settings: the server's.
        sparse: graphs of its token-sparse UNet, if it has one.
        log: writes a line into the server's log.
        on_switch: told the milliseconds of each switch.
    """

    def __init__(
        self,
        bundle: Bundle,
        unet: OpenUNet,
        settings: ServerSettings,
        *,
        sparse: Mapping[str, Refittable],
        log: Callable[[str], None],
        on_switch: Callable[[float], None] = lambda milliseconds: None,
    ) -> None:
        def open_switch() -> AdapterSwitch:
            switch = AdapterSwitch.of_bundle(bundle, unet, settings.adapters, sparse=sparse)
            switch.on_switch = on_switch
            return switch

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

    def ready(self, requests: Sequence[Running]) -> Sequence[Running]:
        """Those whose adapters are not being read, or need not be there yet; all if there are none.
        One that is read would stop the others.
        """
        if not any(request.plan.adapters for request in requests):
            return requests
        return self._switch.result().ready(requests) or requests

    def load(self) -> LoraLoad:
        """The LoRAs that are here; none as long as no request has had one."""
        return self._switch.result().load() if self._used else LoraLoad()

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
        meter: Meter | None = None,
        crowded: bool = False,
    ) -> None:
        """See `denoise.tick.tick`. Requests whose adapter set is not on turn are skipped. `crowded`
        says whether others wait for slots.
        """
        self._used = self._used or any(request.plan.adapters for request in running)
        advance = partial(tick, sparse=sparse, observer=observer, controls=controls, meter=meter)
        if not self._used:
            advance(running, predict, number)
            return
        switch = self._switch.result()
        turn, predict = switch.choose(running, predict, crowded=crowded)
        if sparse is not None:
            sparse.adapt(switch.in_sparse)
        began = time.perf_counter()
        advance(turn, predict, number)
        if turn:
            switch.add_tick(1e3 * (time.perf_counter() - began))
