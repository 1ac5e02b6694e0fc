"""When the low-rank side path is cheaper than refits in turns.

    python -m bench.lora_crossover [--engine onnxruntime] [--steps 20] [--rounds 9]

Measures one step of n requests with n different LoRAs on the demo bundle's engines, without a
server. In turns a step is n calls of the UNet's halves with two rows each, plus a share of a refit
for each set: refits are spread over a request's steps. On the side path it is one call with 2 n
rows. Sides alternate within a round, and medians are reported. Writes
`bench/results/lora_crossover.json`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import report
from bench.lora_files import CONVOLUTIONS, LINEAR, write_loras
from bench.server import DEMO_BUNDLE, ROOT
from tessera.adapters.library import Library
from tessera.adapters.merge import AdapterSet, Patcher
from tessera.adapters.patchable import patchables_of
from tessera.adapters.side import SET, SidePath
from tessera.adapters.store import Adapter, AdapterStore
from tessera.adapters.targets import targets_of
from tessera.denoise.opening import open_unet
from tessera.denoise.running import Running
from tessera.denoise.sampler import Sampler
from tessera.engines.bundle import Bundle
from tessera.plan import AdapterUse, Plan
from tessera.shared.settings import EngineKind

SETS = (1, 2, 4, 8)
RANKS = (4, 8, 16, 32, 64)
KINDS_OF_LORA = {"linear": LINEAR, "linear and 3x3": (*LINEAR, *CONVOLUTIONS)}
FOLDER = ROOT / "out" / "bench-crossover"
console = Console(highlight=False)


@dataclass(frozen=True)
class Level:
    """One step of `sets` requests with LoRAs of one rank.

    Attributes:
        layers: kind of layers that the LoRAs change.
        rank: rank of the LoRAs.
        sets: number of adapter sets.
        pair_ms: time of a UNet call with two rows.
        refit_ms: time of a switch to another set.
        side_ms: time of a side path call with all rows.
        turns_ms: time of a step in turns, with refits spread over the steps of a request.
        samples_ms: of each round, `pair`, `refit` and `side`.
    """

    layers: str
    rank: int
    sets: int
    pair_ms: float
    refit_ms: float
    side_ms: float
    turns_ms: float
    samples_ms: dict[str, list[float]] = field(default_factory=dict)


class Sides:
    """Both LoRA paths of the demo bundle.

    Args:
        folder: of the LoRAs.
        threads: of an engine call.
        engine: what runs the UNet.
    """

    def __init__(self, folder: Path, threads: int, engine: EngineKind) -> None:
        bundle = Bundle(DEMO_BUNDLE, threads=threads, engine=engine)
        opened = open_unet(bundle)
        targets = targets_of(bundle)
        self._store = AdapterStore(Library([folder]), targets, parts=["unet"], budget=2 * 10**9)
        self._patcher = Patcher(
            "unet", patchables_of(bundle, targets, opened.halves), budget=2 * 10**9
        )
        self._unet = opened.unet
        side = SidePath.of_bundle(bundle, self._load, devices=opened.devices, budget=2 * 10**9)
        if side is None:
            raise SystemExit("the demo bundle has no side path; run: tessera-build demo")
        self._side = side
        self._config = bundle.scheduler_config
        self._shape = (4, 32, 32)

    def set_of(self, name: str) -> AdapterSet:
        """The adapter set with one LoRA."""
        return (AdapterUse(name, self._store.load(name).digest, 1.0),)

    def put_in(self, wanted: AdapterSet) -> None:
        """Switch the UNet to an adapter set."""
        self._patcher.apply(wanted, self._load)

    def pair(self) -> None:
        """Call the UNet for one guided request."""
        self._unet.predict(*self._inputs(2), self._conditions(2))

    def side(self, sets: Sequence[AdapterSet]) -> None:
        """Call the side path for requests with these sets."""
        requests = [(self._request(adapter_set), adapter_set) for adapter_set in sets]
        self._side.enter(requests)
        indices = torch.cat([request.side[SET] for request, _ in requests])
        rows = len(indices)
        self._side.predict(*self._inputs(rows), {**self._conditions(rows), SET: indices}, None)

    def _request(self, adapter_set: AdapterSet) -> Running:
        plan = Plan(0, 0, "", 0, 20, 4.0, 128, 128, "euler", 0.0, adapters=adapter_set)
        sampler = Sampler("euler", self._config, steps=20, seed=0)
        return Running(plan, {}, sampler, torch.zeros(1, *self._shape))

    def _inputs(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(rows, *self._shape), torch.full((rows,), 500.0)

    def _conditions(self, rows: int) -> dict[str, torch.Tensor]:
        return {"encoder_hidden_states": torch.randn(rows, 77, 96)}

    def _load(self, use: AdapterUse) -> Adapter:
        return self._store.load_digest(use.name, use.digest)


def main() -> None:
    """Measure, print the tables, write the report."""
    parser = argparse.ArgumentParser(description="side path against refits in turns")
    parser.add_argument("--engine", choices=tuple(EngineKind), default=EngineKind.AUTO)
    parser.add_argument("--steps", type=int, default=20, help="of a request")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=report.path_of("lora_crossover"))
    options = parser.parse_args()
    machine = report.describe_machine(options.threads)
    names = write_files()
    sides = Sides(FOLDER, options.threads, EngineKind(options.engine))
    cases = [(k, r, n) for k in KINDS_OF_LORA for r in RANKS for n in SETS]
    levels = [
        measure(sides, names[kind, rank], kind, rank, count, options)
        for kind, rank, count in track(cases, description="crossover", console=console)
    ]
    for kind in KINDS_OF_LORA:
        console.print(table([level for level in levels if level.layers == kind]))
    settings = {name: getattr(options, name) for name in ("engine", "steps", "rounds")}
    results = {"levels": [asdict(level) for level in levels]}
    report.write("lora_crossover", settings, results, machine=machine, out=options.out)
    console.print(f"written: {options.out}")


def write_files() -> dict[tuple[str, int], list[str]]:
    """Write LoRA files; returns their names by kind of layers and rank."""
    names = {}
    for number, (kind, modules) in enumerate(KINDS_OF_LORA.items()):
        for rank in RANKS:
            names[kind, rank] = [f"{number}-{rank}-{i}" for i in range(max(SETS))]
            write_loras(FOLDER, names[kind, rank], rank=rank, modules=modules)
    return names


def measure(
    sides: Sides, names: Sequence[str], kind: str, rank: int, count: int, options: Any
) -> Level:
    """Medians over the rounds, after a warm-up round."""
    sets = [sides.set_of(name) for name in names[:count]]
    others = [sides.set_of(name) for name in names]
    times: dict[str, list[float]] = {"pair": [], "refit": [], "side": []}
    for number in range(options.rounds + 1):
        with _clock(times["refit"]):
            sides.put_in(others[number % len(others)])
        sides.pair()
        with _clock(times["pair"]):
            sides.pair()
        sides.side(sets)
        with _clock(times["side"]):
            sides.side(sets)
    pair, refit, side = (median(found[1:]) for found in times.values())
    turns = in_turns(pair, refit, count, options.steps)
    samples = {name: [round(ms, 2) for ms in found[1:]] for name, found in times.items()}
    medians = {"pair_ms": pair, "refit_ms": refit, "side_ms": side, "turns_ms": turns}
    rounded = {name: round(ms, 2) for name, ms in medians.items()}
    return Level(layers=kind, rank=rank, sets=count, **rounded, samples_ms=samples)


def in_turns(pair: float, refit: float, count: int, steps: int) -> float:
    """Milliseconds of a step of so many sets that take turns."""
    return count * (pair + (refit / steps if count > 1 else 0.0))


def table(levels: Sequence[Level]) -> Table:
    """A table of the side path's time divided by the time in turns."""
    shown = Table(title=f"{levels[0].layers}: side path / turns (below 1: side path is cheaper)")
    shown.add_column("rank", justify="right")
    for count in SETS:
        shown.add_column(f"{count} sets", justify="right")
    shown.add_column("refit ms", justify="right")
    for rank in RANKS:
        of_rank = [level for level in levels if level.rank == rank]
        ratios = [f"{level.side_ms / level.turns_ms:.2f}" for level in of_rank]
        shown.add_row(str(rank), *ratios, f"{median(level.refit_ms for level in of_rank):.0f}")
    return shown


@contextmanager
def _clock(times: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    times.append(1e3 * (time.perf_counter() - began))


if __name__ == "__main__":
    main()
