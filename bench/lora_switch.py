"""The cost of switching a UNet's LoRA: Tessera's refit against diffusers, with the same file.

    python -m bench.lora_switch --config sd15 --rank 32 [--threads 2] [--rounds 3]

The UNet has a published configuration and random float32 weights. The file changes all its linear
layers. Each side runs in a separate process, since both need the memory. SDXL needs 12 GB and as
much for the mapped checkpoint. Keeping a set's merged weights needs 9 GB more and is skipped if
they are not free.

Tessera uses torch engines. It restores the checkpoint's weights from a mapped file. Writes
`bench/results/lora_switch_CONFIG.json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from bench import report
from tessera.adapters.library import Library
from tessera.adapters.merge import BASE, AdapterSet, Patchable, Patcher
from tessera.adapters.store import Adapter, AdapterStore
from tessera.adapters.targets import Targets
from tessera.engines.torch import TorchEngine
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.networks.walk import weights_of
from tessera.plan import AdapterUse
from tests.fakes.true_configs import CONFIGS

NAMES = ("a", "b")
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Setting:
    """Options of both sides."""

    folder: Path
    config: str
    rank: int
    rounds: int
    threads: int


def main() -> None:
    """Measure, print and write one JSON object: median milliseconds, ratios and samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=CONFIGS, default="sd15")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    machine = report.describe_machine(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            Path(folder), options.config, options.rank, options.rounds, options.threads
        )
        sides = {
            side.__name__: _in_process(side, setting) for side in (prepare, tessera, diffusers)
        }
    found: dict[str, Any] = {
        name: {k: round(median(v), 1) for k, v in t.items()} for name, t in sides.items()
    }
    ours, theirs = found["tessera"], found["diffusers"]
    switch = theirs["load"] + theirs["unfuse"]
    found["ratio"] = {k: round(switch / ours[k], 1) for k in ("cold", "warm", "kept") if k in ours}
    found["samples_ms"] = {
        f"{side}, {k}": [round(ms, 1) for ms in v]
        for side in ("tessera", "diffusers")
        for k, v in sides[side].items()
    }
    settings = {k: v for k, v in vars(options).items() if k != "threads"}
    print(json.dumps(found, indent=1))
    report.write(f"lora_switch_{options.config}", settings, found, machine=machine)


def prepare(setting: Setting) -> Times:
    """Write the checkpoint's weights and two LoRA files."""
    unet = _unet(setting)
    save_file({k: v.contiguous() for k, v in unet.state_dict().items()}, setting.folder / "base")
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        tensors = {}
        for key, module in unet.named_modules():
            if isinstance(module, nn.Linear):
                down = 0.02 * torch.randn(setting.rank, module.in_features)
                up = 0.02 * torch.randn(module.out_features, setting.rank)
                tensors[f"unet.{key}.lora_A.weight"] = down.half()
                tensors[f"unet.{key}.lora_B.weight"] = up.half()
        save_file(tensors, setting.folder / f"{name}.safetensors")
    size = (setting.folder / "a.safetensors").stat().st_size
    return {"file_mb": [size / 1e6]}


def tessera(setting: Setting) -> Times:
    """Switch A -> B -> A: reading files, with parsed files, and with kept merged weights."""
    unet = _unet(setting)
    unet.load_state_dict(load_file(setting.folder / "base"))
    base = load_file(setting.folder / "base")
    targets = Targets({"unet": weights_of(unet)}, setting.config)
    halves = [TorchEngine(UNetEncoder(unet)), TorchEngine(UNetDecoder(unet))]
    patchables = [
        Patchable(h, h.describe().refittable & targets.shapes["unet"].keys(), base.__getitem__)
        for h in halves
    ]

    def new_store() -> AdapterStore:
        library = Library([setting.folder])
        return AdapterStore(library, targets, parts=["unet"], budget=2 * 10**9)

    times: Times = {"parse": [], "cold": [], "warm": [], "restore": []}
    warm = Patcher("unet", patchables, budget=0, threads=setting.threads)
    parsed = new_store()
    sets = {n: (AdapterUse(n, parsed.load(n).digest, 0.8),) for n in NAMES}
    _switch(warm, sets["b"], parsed)  # touches every base weight once
    for _ in range(setting.rounds):
        for name in NAMES:
            empty = new_store()
            with _clock(times["cold"]):
                with _clock(times["parse"]):
                    empty.load(name)
                _switch(warm, sets[name], empty)
        for name in NAMES:
            with _clock(times["warm"]):
                _switch(warm, sets[name], parsed)
        with _clock(times["restore"]):
            _switch(warm, BASE, parsed)
    merged = sum(base[name].nbytes for name in _touched(parsed))
    if psutil.virtual_memory().available > 1.2 * merged:
        kept = Patcher("unet", patchables, budget=merged, threads=setting.threads)
        _switch(kept, sets["b"], parsed)
        times["kept"] = []
        for _ in range(setting.rounds):
            _switch(kept, BASE, parsed)
            with _clock(times["kept"]):
                _switch(kept, sets["b"], parsed)
    assert all(torch.equal(p, base[n]) == (n not in _touched(parsed)) for n, p in _some(unet))
    return times


def diffusers(setting: Setting) -> Times:
    """Load and fuse, then unfuse and unload."""
    unet = _unet(setting)
    times: Times = {"load": [], "unfuse": []}
    for _ in range(setting.rounds):
        for name in NAMES:
            with _clock(times["load"]):
                unet.load_lora_adapter(
                    str(setting.folder),
                    prefix="unet",
                    adapter_name=name,
                    weight_name=f"{name}.safetensors",
                )
                unet.set_adapters([name], [0.8])
                unet.fuse_lora()
            with _clock(times["unfuse"]):
                unet.unfuse_lora()
                unet.unload_lora()
    return times


def _unet(setting: Setting) -> UNet2DConditionModel:
    torch.set_num_threads(setting.threads)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**CONFIGS[setting.config]["unet"])
    unet = unet.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.uniform_(-0.05, 0.05)
    return unet.requires_grad_(False)


def _switch(patcher: Patcher, adapter_set: AdapterSet, store: AdapterStore) -> None:
    def load(use: AdapterUse) -> Adapter:
        return store.load_digest(use.name, use.digest)

    patcher.apply(adapter_set, load)


def _touched(store: AdapterStore) -> set[str]:
    return set(store.load("b").updates["unet"])


def _some(unet: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(unet.named_parameters())[::50]


@contextmanager
def _clock(times: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    times.append(1e3 * (time.perf_counter() - began))


def _in_process(side: Callable[[Setting], Times], setting: Setting) -> Times:
    """Run a side in a new process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        result: Any = pool.apply(side, (setting,))
    return dict(result)


if __name__ == "__main__":
    main()
