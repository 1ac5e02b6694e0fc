"""The low-rank side path: one UNet call for requests with different adapter sets.

Its engines are the UNet's halves with low-rank inputs and weights of their own, which nobody
refits. They are opened when they are first adapter_set.
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
from tessera.denoise.unet import UNet
from tessera.engines.base import Engine, EngineInfo
from tessera.engines.bundle import Bundle
from tessera.manifest import LOWRANK
from tessera.networks.slots import slots_of
from tessera.plan import AdapterUse

SET = "lora_set"
"""Further input of a call: (n,) the number of each row's adapter set in the tick."""
GRAPHS = (f"unet_encoder{LOWRANK}", f"unet_decoder{LOWRANK}")

Load = Callable[[AdapterUse], Adapter]
Member = tuple[Running, AdapterSet]
_log = logging.getLogger(__name__)


class SidePath:
    """Predicts with every row's own adapter set.

    Args:
        open_halves: opens the engines: encoder and decoder half.
        factors: of adapter sets.
        max_rows: largest batch of one engine call.
        max_rank: largest sum of a set's ranks.
        background: whether to open the engines beside the ticks.
    """

    def __init__(
        self,
        open_halves: Callable[[], Sequence[Engine]],
        factors: FactorStore,
        *,
        max_rows: int,
        max_rank: int,
        background: bool = True,
    ) -> None:
        self._open_halves = open_halves
        self._factors = factors
        self._max_rows = max_rows
        self._max_rank = max_rank
        self._background = background
        self._held: dict[AdapterSet, list[Factors]] = {}
        self._opening: Future[UNet] | None = None
        self._halves: list[_Half] = []

    @classmethod
    def of_bundle(cls, bundle: Bundle, load: Load, *, device: str, budget: int) -> SidePath | None:
        """The side path of a bundle; `None` if it has no graphs for it.

        Args:
            bundle: whose.
            load: gives the LoRA of an element of an adapter set.
            device: of the UNet's engines.
            budget: bytes of factors to keep.
        """
        manifest = bundle.manifest
        if any(graph not in manifest.graphs for graph in GRAPHS):
            return None
        unet = bundle.outline("unet")
        halves = [slots_of(unet.half(graph.removesuffix(LOWRANK))) for graph in GRAPHS]
        on_gpu = device.startswith("cuda")
        dtype = torch.float16 if on_gpu else torch.float32
        return cls(
            lambda: [bundle.engine(graph) for graph in GRAPHS],
            FactorStore(halves, load, budget=budget, device=device, dtype=dtype),
            max_rows=manifest.limits.max_rows,
            max_rank=manifest.limits.lora_rank,
            background=not on_gpu,  # memory taken meanwhile would spoil CUDA graphs being captured
        )

    def open(self) -> None:
        """Begin to open the engines, unless somebody has."""
        if self._opening is None:
            self._opening = ThreadPoolExecutor(1).submit(self._open)
            if not self._background:
                self._opening.exception()

    def opened(self) -> bool:
        """Open the engines unless somebody has, and wait for them; whether they are open."""
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
        """Whether the engines cannot be opened."""
        opening = self._opening
        return opening is not None and opening.done() and opening.exception() is not None

    def takes(self, adapter_set: AdapterSet) -> bool:
        """Whether a set's ranks are small enough; `False` if it cannot be loaded, which whoever
        puts it into the engine will say.
        """
        try:
            return max(self._factors.ranks(adapter_set)) <= self._max_rank
        except Exception:
            return False

    def ranks(self, adapter_set: Iterable[AdapterSet]) -> Ranks:
        """The ranks that a batch of sets is padded to."""
        both = zip(*map(self._factors.ranks, adapter_set), strict=True)
        linear, conv = (padded_rank(max(own), self._max_rank) for own in both)
        return linear, conv

    def enter(self, members: Sequence[Member]) -> list[Running]:
        """Prepare requests for a call with their sets once the engines are open; those that can be
        run.

        A set that cannot be loaded fails its requests.
        """
        held, errors = dict[AdapterSet, list[Factors]](), dict[AdapterSet, Exception]()
        for adapter_set in dict.fromkeys(own for _, own in members):
            try:
                held[adapter_set] = self._held.get(adapter_set) or self._factors.get(adapter_set)
            except Exception as error:
                errors[adapter_set] = error
        for half in self._halves:
            half.forget_unused()
        self._held, numbers = held, {own: number for number, own in enumerate(held)}
        for request, own in members:
            if own in errors:
                request.error = errors[own]
            else:
                request.side = {SET: torch.full((request.branches,), numbers[own])}
        return [request for request, own in members if own in numbers]

    def rest(self) -> None:
        """Free what the last batches needed: others have their turn."""
        self._held = {}
        for half in self._halves:
            half.forget()

    @property
    def predict(self) -> Predict:
        """`UNet.predict`; its conditions have `SET` too, as `enter` gave it to the requests."""
        return self._unet().predict

    def _unet(self) -> UNet:
        self.open()
        assert self._opening is not None
        return self._opening.result()

    def _open(self) -> UNet:
        try:
            halves = [
                _Half(engine, self._sets, half, self._max_rank)
                for half, engine in enumerate(self._open_halves())
            ]
            unet = UNet(*halves, max_rows=self._max_rows)
        except Exception as error:
            _log.warning("the low-rank side path cannot be used: %s", error)
            raise
        self._halves = halves
        return unet

    def _sets(self) -> list[tuple[AdapterSet, list[Factors]]]:
        return list(self._held.items())


class _Half:
    """An engine with low-rank inputs, as one that takes `SET` instead, and hands it on to the other
    half among its outputs.

    Args:
        engine: of a graph with low-rank inputs.
        sets: the tick's adapter sets, with their factors for each half.
        half: which one this is.
        max_rank: largest rank that it takes.
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
        self._joined: dict[tuple[AdapterSet, ...], Factors] = {}
        self._used: set[tuple[AdapterSet, ...]] = set()

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`."""
        own = {name: tensor for name, tensor in inputs.items() if name != SET}
        numbers = inputs[SET]
        return {**self._engine.run({**own, **self._rows(numbers.tolist())}), SET: numbers}

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Engine.refit`."""
        self._engine.refit(weights)

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        return self._engine.describe()

    def _rows(self, numbers: Sequence[int]) -> Factors:
        """Factors of a batch; made anew only when it changes."""
        sets = self._sets()
        key = tuple(sets[number][0] for number in numbers)
        if key not in self._joined:
            rows = [sets[number][1][self._half] for number in numbers]
            self._joined[key] = join(rows, self._max_rank)
        self._used.add(key)
        return self._joined[key]

    def forget_unused(self) -> None:
        """Drop batches that have not come since the last time."""
        self._joined = {key: self._joined[key] for key in self._used}
        self._used = set()

    def forget(self) -> None:
        """Drop all."""
        self._joined = {}
        self._used = set()
