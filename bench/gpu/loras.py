"""Change of LoRA (rank 32, all linear layers of the UNet): Tessera's refit of captured engines
against diffusers on the same file and the same GPU.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bench.gpu import networks
from bench.gpu.timing import Options, Place, milliseconds, options, place
from tessera.adapters.library import Library
from tessera.adapters.merge import BASE, AdapterSet, Patchable, Patcher
from tessera.adapters.store import Adapter, AdapterStore
from tessera.adapters.targets import Targets
from tessera.networks.walk import weights_of
from tessera.plan import AdapterUse

RANK = 32
BUDGET = 4 * 10**9
_HALVES = ("unet_encoder", "unet_decoder")


def main(arguments: Sequence[str] | None = None) -> None:
    """A row for each way to change LoRAs."""
    chosen, where = options(arguments), place()
    rounds = 1 if chosen.tiny else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = networks.configs(chosen.variant, tiny=chosen.tiny)["unet"]
        unet = networks.random_network("unet", config, where)
        for seed, lora in enumerate("ab"):
            write_lora(folder / f"{lora}.safetensors", unet, seed=seed)
        size = (folder / "a.safetensors").stat().st_size
        chosen.report.details["file MB"] = size / 1e6
        ours(chosen, folder, unet, where, rounds)
        del unet
        theirs(chosen, folder, networks.random_network("unet", config, where), rounds)


def write_lora(path: Path, unet: nn.Module, *, seed: int, rank: int = RANK) -> None:
    """A file of random numbers that changes all linear layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear):
            for key, shape in (
                ("A", (rank, layer.in_features)),
                ("B", (layer.out_features, rank)),
            ):
                values = 0.02 * torch.randn(shape, generator=generator)
                tensors[f"unet.{name}.lora_{key}.weight"] = values.half()
    save_file(tensors, path)


class Engines:
    """A UNet's captured halves, LoRA files, and what puts these into those.

    Args:
        folder: of the files.
        unet: whose weights the halves share.
        variant: of the UNet.
        where: it runs.
    """

    def __init__(self, folder: Path, unet: nn.Module, variant: str, where: Place) -> None:
        self._folder = folder
        base = {
            f"{n}.weight": m.weight.float().cpu().contiguous()
            for n, m in unet.named_modules()
            if isinstance(m, nn.Linear)
        }
        self.merged_bytes = sum(weight.nbytes for weight in base.values())
        self._targets = Targets({"unet": weights_of(unet)}, variant)
        self.halves = [networks.engine(half, unet, variant, where) for half in _HALVES]
        self._patchables = [
            Patchable(half, half.describe().refittable & base.keys(), base.__getitem__)
            for half in self.halves
        ]

    def store(self) -> AdapterStore:
        """One that has read nothing yet."""
        return AdapterStore(Library([self._folder]), self._targets, parts=["unet"], budget=BUDGET)

    def patcher(self, *, budget: int = 0) -> Patcher:
        """For the base weights, which have to be in."""
        threads = torch.get_num_threads()
        return Patcher("unet", self._patchables, budget=budget, threads=threads)


def set_of(store: AdapterStore, name: str) -> AdapterSet:
    """One LoRA, as an adapter set."""
    return (AdapterUse(name, store.load(name).digest, 0.8),)


def loader(store: AdapterStore) -> Callable[[AdapterUse], Adapter]:
    """What gives a patcher its LoRAs."""
    return lambda use: store.load_digest(use.name, use.digest)


def ours(chosen: Options, folder: Path, unet: nn.Module, where: Place, rounds: int) -> None:
    """From file, from parsed file, from kept merged weights, and back to the base."""
    engines = Engines(folder, unet, chosen.variant, where)
    parsed = engines.store()
    sets = {name: set_of(parsed, name) for name in "ab"}
    warm = engines.patcher()
    warm.apply(sets["b"], loader(parsed))  # reads every base weight once
    cold: list[float] = []
    again: list[float] = []
    back: list[float] = []
    for _ in range(rounds):
        for name, own in sets.items():
            anew = engines.store()

            def from_file(anew: Any = anew, own: Any = own, name: str = name) -> None:
                anew.load(name)
                warm.apply(own, loader(anew))

            cold.append(milliseconds(from_file))
        for own in sets.values():
            again.append(milliseconds(partial(warm.apply, own, loader(parsed))))
        back.append(milliseconds(lambda: warm.apply(BASE, loader(parsed))))
    _add(chosen, "Tessera, file not read yet", cold)
    _add(chosen, "Tessera, file in memory", again)
    _add(chosen, "Tessera, back to the base", back)
    kept = engines.patcher(budget=2 * engines.merged_bytes)
    kept.apply(sets["b"], loader(parsed))
    times = []
    for _ in range(rounds):
        kept.apply(BASE, loader(parsed))
        times.append(milliseconds(lambda: kept.apply(sets["b"], loader(parsed))))
    _add(chosen, "Tessera, merged weights kept", times)


def theirs(chosen: Options, folder: Path, unet: Any, rounds: int) -> None:
    """Load and fuse, unfuse and unload."""
    load: list[float] = []
    unload: list[float] = []
    for _ in range(rounds):
        for name in "ab":

            def fuse(name: str = name) -> None:
                file = f"{name}.safetensors"
                unet.load_lora_adapter(
                    str(folder), prefix="unet", adapter_name=name, weight_name=file
                )
                unet.set_adapters([name], [0.8])
                unet.fuse_lora()

            def unfuse() -> None:
                unet.unfuse_lora()
                unet.unload_lora()

            load.append(milliseconds(fuse))
            unload.append(milliseconds(unfuse))
    _add(chosen, "diffusers, load and fuse", load)
    _add(chosen, "diffusers, unfuse and unload", unload)


def _add(chosen: Options, way: str, times: Sequence[float]) -> None:
    chosen.report.add(way=way, ms=statistics.median(times), most=max(times))


if __name__ == "__main__":
    main()
