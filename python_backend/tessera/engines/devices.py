"""The devices that compute the UNet together: each takes a share of the rows of a call.

Rows are split so that all devices are expected to end at the same time. So the two branches of one
guided request run on two devices at once (latent parallelism, SwiftDiffusion), and several requests
are spread over them. Every device has a thread of its own: engines are not safe to use from two,
and torch keeps a pool of workers for each thread that computes on a CPU.

Knows torch's devices and functions to call, nothing of networks or requests. Imports torch on use,
since processes that open no engine read bundles too.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from tessera.errors import BundleError, Unavailable, listing
from tessera.shared.average import Estimate
from tessera.shared.machine import has_driver
from tessera.shared.settings import AUTO, CPU, GPU

_log = logging.getLogger(__name__)
_WARM_UPS = 2
T = TypeVar("T")
Cost = tuple[str, int]
"""Kind of a step (`dense`, `sparse`) and how many tokens of each row it computes."""


class DeviceLost(Exception):
    """A device failed in the middle of a call. It is left out from now on.

    Attributes:
        rows: rows of the call that the device computed.
        error: for the requests of these rows.
    """

    def __init__(self, rows: slice, error: Unavailable) -> None:
        super().__init__(str(error))
        self.rows = rows
        self.error = error


@dataclass
class Device:
    """One device.

    Attributes:
        place: what the operator calls it: `cpu`, `gpu:0` ...
        name: what torch calls it: `cpu`, `cuda:0` ...
        threads: threads of one engine call on a CPU; 0 is one per core.
        pace: milliseconds per token of a row, measured when the server started.
        probe: runs a call that is known to work, to find out whether the device does.
        failed: whether it is left out.
    """

    place: str
    name: str
    threads: int = 0
    pace: float = 1.0
    probe: Callable[[], object] = lambda: None
    failed: bool = False
    _costs: dict[Cost, Estimate] = field(default_factory=dict, repr=False)
    _seen: dict[Cost, int] = field(default_factory=dict, repr=False)

    def cost(self, cost: Cost) -> float:
        """Expected milliseconds per token of a row.

        It comes from the latest steps, those nearest in kind and number of tokens. Without any, it
        is the pace, so a device that was slow once gets rows again a minute later.
        """
        kind, size = _bucket(cost)
        fresh = {c: e for c, e in self._costs.items() if e.fresh}
        if not fresh:
            return self.pace
        return fresh[min(fresh, key=lambda c: (c[0] != kind, abs(c[1] - size)))].now

    def learn(self, cost: Cost, milliseconds: float) -> None:
        """Note the milliseconds per token of a share that has run.

        The first calls of a kind prepare later ones (CUDA graphs, workspaces) and do not count.
        """
        key = _bucket(cost)
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] <= _WARM_UPS:
            return
        if key in self._costs:
            self._costs[key].learn(milliseconds)
        else:
            self._costs[key] = Estimate(milliseconds, milliseconds)


def devices_at(places: Sequence[str], *, threads: int = 0, gpu: bool = True) -> list[Device]:
    """The devices at some places.

    Args:
        places: `auto` alone, or one for each device.
        threads: threads that devices on the CPU share; 0 is one per core.
        gpu: whether the engines can run on a GPU.

    Raises:
        BundleError: this machine has no such GPU, or engines of this kind run on a CPU only.
    """
    import torch

    count = torch.cuda.device_count() if gpu and torch.cuda.is_available() else 0
    there = [f"{GPU}{i}" for i in range(count)]
    if gpu and not there and list(places) == [AUTO] and has_driver():
        _log.warning("this machine has NVIDIA's driver, but torch finds no GPU: the CPU is used")
    chosen = (there or [CPU]) if list(places) == [AUTO] else list(places)
    for place in chosen:
        if place not in (CPU, *there):
            raise BundleError(
                f"there is no {place} for this engine; accepted: {listing([CPU, *there])}"
            )
    on_cpu = chosen.count(CPU)
    every = threads or len(os.sched_getaffinity(0))
    share = threads if on_cpu < 2 else max(1, every // on_cpu)
    return [
        Device(place, CPU, share) if place == CPU else Device(place, f"cuda:{place[len(GPU) :]}")
        for place in chosen
    ]


class Devices:
    """Devices that share the rows of a call.

    Args:
        devices: at least one.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = tuple(devices)
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=device.place) for device in devices
        ]

    def __len__(self) -> int:
        return len(self._devices)

    def __getitem__(self, index: int) -> Device:
        return self._devices[index]

    @property
    def places(self) -> list[str]:
        """Where they are."""
        return [device.place for device in self._devices]

    @property
    def in_use(self) -> list[int]:
        """Indices of the devices that have not failed."""
        return [i for i, device in enumerate(self._devices) if not device.failed]

    def split(self, rows: int, cost: Cost) -> list[tuple[int, slice]]:
        """Shares of a call's rows: (index of the device, rows), in order and none empty.

        Each row goes to the device that is expected to end first with it.
        """
        costs = {i: self._devices[i].cost(cost) for i in self.in_use}
        counts = dict.fromkeys(costs, 0)
        for _ in range(rows):
            first = min(counts, key=lambda i: (counts[i] + 1) * costs[i])
            counts[first] += 1
        shares, start = list[tuple[int, slice]](), 0
        for index, count in counts.items():
            if count:
                shares.append((index, slice(start, start + count)))
                start += count
        return shares

    def run(
        self,
        shares: Sequence[tuple[int, slice]],
        call: Callable[[int, slice, int], T],
        cost: Cost,
        *,
        learn: bool = True,
    ) -> list[T]:
        """Run the shares of a call at once.

        Args:
            shares: what `split` returned.
            call: runs one share, given its device, its rows and its index among the shares.
            cost: kind and tokens of the call's rows.
            learn: whether the shares' times show what their devices cost.

        Returns:
            What each share returned.

        Raises:
            DeviceLost: a device failed, and does not work any more.
            Exception: a share failed on a device that works.
        """
        futures = [
            self._threads[device].submit(_timed, partial(call, device, rows, i))
            for i, (device, rows) in enumerate(shares)
        ]
        failures = _failures(futures)
        for place in failures:
            device, rows = shares[place]
            if self._leave_out(device, failures[place]):
                raise DeviceLost(rows, self._lost(device)) from failures[place]
        for failure in failures.values():
            raise failure
        results = [future.result() for future in futures]
        for (device, rows), (_, milliseconds) in zip(shares, results, strict=True) if learn else ():
            per_token = milliseconds / (rows.stop - rows.start) / cost[1]
            self._devices[device].learn(cost, per_token)
        return [result for result, _ in results]

    def each(self, call: Callable[[int], object]) -> None:
        """Call a function for every device in use, each on its thread. A device that fails and does
        not work any more is left out.

        Raises:
            Exception: it failed on a device that works.
        """
        devices = self.in_use
        futures = [self._threads[i].submit(_inferring, partial(call, i)) for i in devices]
        for place, failure in _failures(futures).items():
            if not self._leave_out(devices[place], failure):
                raise failure

    def _leave_out(self, index: int, error: Exception) -> bool:
        """Leave a device out if it does not work any more; the last one is kept, since nothing
        could replace it.
        """
        device = self._devices[index]
        if device.failed or len(self.in_use) == 1:
            return device.failed
        try:
            self._threads[index].submit(_inferring, device.probe).result()
        except Exception:
            device.failed = True
            _log.error("%s is left out, it failed: %s", device.place, error)
        return device.failed

    def _lost(self, index: int) -> Unavailable:
        left = listing(self._devices[i].place for i in self.in_use)
        return Unavailable(
            f"{self._devices[index].place} failed while it computed this request; send it again, "
            f"the server goes on with {left}"
        )


def _bucket(cost: Cost) -> Cost:
    """Tokens on a logarithmic scale, so that few kinds of steps are told apart."""
    kind, tokens = cost
    return kind, round(2 * math.log2(tokens))


def _failures(futures: Sequence[Future[T]]) -> dict[int, Exception]:
    """What failed, by place; waits for all."""
    errors = {i: future.exception() for i, future in enumerate(futures)}
    return {i: error for i, error in errors.items() if isinstance(error, Exception)}


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and its milliseconds."""
    began = time.perf_counter()
    return _inferring(call), 1e3 * (time.perf_counter() - began)


def _inferring(call: Callable[[], T]) -> T:
    """Torch's mode belongs to a thread."""
    import torch

    with torch.inference_mode():
        return call()
