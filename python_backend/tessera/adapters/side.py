"""The low-rank side path: one UNet call for requests with different adapter sets.

Its engines are the UNet's halves with low-rank inputs. Their weights are the base, which is never
refitted. They are opened on first use. Knows engines and running requests, nothing of Triton.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from tessera.adapters.factors import Factors, FactorStore, Ranks, join, padded_rank
from tessera.adapters.merge import AdapterSet
from tessera.adapters.store import Adapter
from tessera.denoise.running import Running
from tessera.denoise.tick import Predict
from tessera.denoise.unet import SpreadUNet, UNet, unet_on
from tessera.engines.base import Engine, EngineInfo
from tessera.engines.bundle import Bundle
from tessera.engines.devices import Devices
from tessera.manifest import LOWRANK
from tessera.networks.slots import slots_of
from tessera.plan import AdapterUse

SET = "lora_set"
"""Additional input of a call: (n,) index of each row's adapter set in the tick."""
GRAPHS = (f"unet_encoder{LOWRANK}", f"unet_decoder{LOWRANK}")

Load = Callable[[AdapterUse], Adapter]
Member = tuple[Running, AdapterSet]
_log = logging.getLogger(__name__)


class SidePath:
    """Runs the UNet with a different adapter set in each row.

    Args:
        open_halves: opens the engines of encoder and decoder half on each device: encoders,
            decoders.
        factors: factors of adapter sets.
        devices: where the halves are.
        max_rows: largest batch of one engine call.
        max_rank: largest sum of a set's ranks.
        background: whether to open the engines in a thread while ticks run.
    """

    def __init__(
        self,
        open_halves: Callable[[], Sequence[Sequence[Engine]]],
        factors: FactorStore,
        devices: Devices,
        *,
        max_rows: int,
        max_rank: int,
        background: bool = True,
    ) -> None:
        self._open_halves = open_halves
        self._factors = factors
        self._devices = devices
        self._max_rows = max_rows
        self._max_rank = max_rank
        self._background = background
        self._in_use: dict[AdapterSet, list[Factors]] = {}
        self._opening: Future[UNet | SpreadUNet] | None = None
        self._halves: list[_Half] = []

    @classmethod
    def of_bundle(
        cls, bundle: Bundle, load: Load, *, devices: Devices, budget: int
    ) -> SidePath | None:
        """The side path of a bundle; `None` if the bundle has no graphs for it.

        Args:
            bundle: the bundle.
            load: loads the adapter of an adapter use.
            devices: of the UNet.
            budget: bytes of factors to keep.
        """
        manifest = bundle.manifest
        if any(graph not in manifest.graphs for graph in GRAPHS):
            return None
        unet = bundle.outline("unet")
        halves = [slots_of(unet.half(graph.removesuffix(LOWRANK))) for graph in GRAPHS]
        first = devices[0].name  # the others get what they need of it, joined for their rows
        on_gpu = first.startswith("cuda")
        dtype = torch.float16 if on_gpu else torch.float32
        return cls(
            lambda: [bundle.engines(graph, devices) for graph in GRAPHS],
            FactorStore(halves, load, budget=budget, device=first, dtype=dtype),
            devices,
            max_rows=manifest.limits.max_rows,
            max_rank=manifest.limits.lora_rank,
            background=not on_gpu,  # nobody has tried it while CUDA graphs are captured
        )

    def open(self) -> None:
        """Start opening the engines, unless that has begun."""
        if self._opening is None:
            self._opening = ThreadPoolExecutor(1).submit(self._open)
            if not self._background:
                self._opening.exception()

    def opened(self) -> bool:
        """Open the engines if necessary and wait; returns whether they are open."""
        self.open()
        assert self._opening is not None
        return self._opening.exception() is None

    @property
    def ready(self) -> bool:
        """Whether the engines are open."""
        opening = self._opening
        return opening is not None and opening.done() and opening.exception() is None

    @property
    def failed(self) -> bool:
        """Whether opening the engines has failed."""
        opening = self._opening
        return opening is not None and opening.done() and opening.exception() is not None

    def takes(self, adapter_set: AdapterSet) -> bool:
        """Whether a set is made of low-rank products, and their ranks are small enough. False if
        the set cannot be loaded.

        The load error is then raised when the set is put into the usual engines.
        """
        try:
            ranks = self._factors.ranks(adapter_set)
            return ranks is not None and max(ranks) <= self._max_rank
        except Exception:
            return False

    def ranks(self, adapter_set: Iterable[AdapterSet]) -> Ranks:
        """The ranks to which a batch of these sets is padded. The side path takes each of them."""
        known = [ranks for ranks in map(self._factors.ranks, adapter_set) if ranks is not None]
        by_kind = zip(*known, strict=True)
        linear, conv = (padded_rank(max(ranks), self._max_rank) for ranks in by_kind)
        return linear, conv

    def enter(self, members: Sequence[Member]) -> list[Running]:
        """Prepare requests for a call with their sets. The engines have to be open.

        If a set cannot be loaded, its requests get the error.

        Returns:
            The requests that can run.
        """
        factors, errors = dict[AdapterSet, list[Factors]](), dict[AdapterSet, Exception]()
        for adapter_set in dict.fromkeys(adapter_set for _, adapter_set in members):
            try:
                kept = self._in_use.get(adapter_set)
                factors[adapter_set] = kept or self._factors.get(adapter_set)
            except Exception as error:
                errors[adapter_set] = error
        for half in self._halves:
            half.forget_unused()
        self._in_use = factors
        index = {adapter_set: i for i, adapter_set in enumerate(factors)}
        for request, adapter_set in members:
            if adapter_set in errors:
                request.error = errors[adapter_set]
            else:
                request.side = {SET: torch.full((request.branches,), index[adapter_set])}
        return [request for request, adapter_set in members if adapter_set in index]

    def rest(self) -> None:
        """Free the memory of the last batches, while other requests have their turn."""
        self._in_use = {}
        for half in self._halves:
            half.forget()

    @property
    def predict(self) -> Predict:
        """`UNet.predict`. Its conditions include `SET`, which `enter` adds to the requests."""
        return self._unet().predict

    def _unet(self) -> UNet | SpreadUNet:
        self.open()
        assert self._opening is not None
        return self._opening.result()

    def _open(self) -> UNet | SpreadUNet:
        try:
            halves = [
                [_Half(engine, self._sets, half, self._max_rank) for engine in engines]
                for half, engines in enumerate(self._open_halves())
            ]
            unet = unet_on(self._devices, *halves, max_rows=self._max_rows)
        except Exception as error:
            _log.warning("the low-rank side path cannot be used: %s", error)
            raise
        self._halves = [half for of_devices in halves for half in of_devices]
        return unet

    def _sets(self) -> list[tuple[AdapterSet, list[Factors]]]:
        return list(self._in_use.items())


class _Half:
    """Wraps an engine with low-rank inputs as one that takes `SET` instead.

    `SET` is also an output, so that the other half receives it.

    Args:
        engine: engine of a graph with low-rank inputs.
        sets: returns the tick's adapter sets, with their factors for each half.
        half: index of this half.
        max_rank: largest rank that the engine accepts.
    """

    def __init__(
        self,
        engine: Engine,
        sets: Callable[[], list[tuple[AdapterSet, list[Factors]]]],
        half: int,
        max_rank: int,
    ) -> None:
        self._engine = engine
        self._sets = sets
        self._half = half
        self._max_rank = max_rank
        self._device = engine.describe().device
        self._joined: dict[tuple[AdapterSet, ...], Factors] = {}
        self._used: set[tuple[AdapterSet, ...]] = set()

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`."""
        of_engine = {name: tensor for name, tensor in inputs.items() if name != SET}
        sets = inputs[SET]
        return {**self._engine.run({**of_engine, **self._rows(sets.tolist())}), SET: sets}

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Engine.refit`."""
        self._engine.refit(weights)

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        return self._engine.describe()

    def _rows(self, indices: Sequence[int]) -> Factors:
        """Factors of a batch, joined only when the batch changes."""
        sets = self._sets()
        key = tuple(sets[i][0] for i in indices)
        if key not in self._joined:
            rows = [sets[i][1][self._half] for i in indices]
            joined = join(rows, self._max_rank)
            self._joined[key] = {name: t.to(self._device) for name, t in joined.items()}
        self._used.add(key)
        return self._joined[key]

    def forget_unused(self) -> None:
        """Drop joined factors that have not been used since the last call of this method."""
        self._joined = {key: self._joined[key] for key in self._used}
        self._used = set()

    def forget(self) -> None:
        """Drop all joined factors."""
        self._joined = {}
        self._used = set()
