"""UNet halves with low-rank inputs against diffusers with the same LoRA files, and what a batch's
factors are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tessera.adapters.factors import Factors, factors_of, join, padded_rank, ranks_of
from tessera.adapters.library import Library
from tessera.adapters.store import AdapterStore
from tessera.adapters.targets import Targets
from tessera.manifest import LOWRANK
from tessera.networks import graphs
from tessera.networks.lowrank import LowRank
from tessera.networks.slots import CONV, FACTORS, LINEAR, widths_of
from tessera.networks.walk import weights_of
from tessera.variants import VARIANTS
from tests.fakes import lora
from tests.fakes.checkpoint import topology
from tests.samples.bundles import Small
from tests.samples.graphs import unet_and_inputs, whole

FILES = {
    "attention": ("peft", 3, lora.ATTENTION),
    "everything": ("diffusers", 2, lora.EVERYTHING),
    "other": ("diffusers", 5, ("to_k", "ff.net.2", "conv2", "proj_out")),
}
"""Name of a LoRA -> layout, rank, modules."""
ROWS: list[dict[str, float]] = [
    {},
    {"attention": 0.7},
    {"everything": -1.2},
    {"attention": 1.0, "everything": 0.5, "other": 0.3},
]
"""LoRAs and weights of each row."""


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A topology; `tmp_path` has LoRAs for it."""
    name: str = request.param
    for seed, (file, (layout, rank, modules)) in enumerate(FILES.items()):
        pairs = lora.random_pairs(
            topology(name), rank=rank, seed=seed, modules=modules, parts=("unet",), size=0.5
        )
        lora.save(tmp_path / f"{file}.safetensors", lora.LAYOUTS[layout](pairs))
    return name


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_every_row_is_what_diffusers_makes_with_its_loras(variant: str, tmp_path: Path) -> None:
    unet, inputs = unet_and_inputs(variant, len(ROWS), 9, 14)
    rows = [_terms(tmp_path, unet, chosen) for chosen in ROWS]
    halves = [graphs.wrap(f"unet_{h}{LOWRANK}", unet, VARIANTS[variant]) for h in _HALVES]
    given = [join([factors_of(h.slots, r) for r in rows], 64) for h in halves]  # type: ignore[arg-type]
    mid, emb, *skips = halves[0](*inputs.values(), *given[0].values())
    text = inputs["encoder_hidden_states"]
    found = halves[1](mid, emb, text, *skips, *given[1].values())
    plain = whole(unet, inputs)
    assert torch.equal(plain, whole(topology(variant).unet, inputs)), (
        "others' calls stay as they are"
    )
    for index, chosen in enumerate(ROWS):
        row = {name: tensor[index : index + 1] for name, tensor in inputs.items()}
        expected = whole(_with_loras(variant, tmp_path, chosen), row)
        assert (found[index] - expected[0]).abs().max() <= 2e-5 * expected.abs().max()
        effect = (expected[0] - plain[index]).abs().max()
        assert (effect > 1e-2) == bool(chosen), "a LoRA without effect would prove nothing"


def test_ranks_are_padded_to_powers_of_two() -> None:
    assert [padded_rank(r, 64) for r in (0, 1, 2, 3, 8, 9, 33, 64)] == [1, 1, 2, 4, 8, 16, 64, 64]
    assert padded_rank(40, 48) == 48


def test_rows_are_padded_with_zeros() -> None:
    def row(linear: int, conv: int) -> Factors:
        return {n: torch.ones(linear if n in LINEAR else conv, 2) for n in FACTORS}

    joined = join([row(0, 0), row(3, 0), row(1, 0)], 64)
    assert joined[LINEAR[0]][:, :, 0].tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert {tuple(joined[name].shape) for name in CONV} == {(3, 1, 2)}
    assert not joined[CONV[1]].any()


def test_stacks_have_a_place_for_every_layer(small: Callable[[str], Small]) -> None:
    unet = small("sdxl").pipe.unet
    layers = [m for m in unet.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    halves = [graphs.wrap(f"unet_{h}{LOWRANK}", unet, VARIANTS["sdxl"]) for h in _HALVES]
    slots = [slot for h in halves if isinstance(h, LowRank) for slot in h.slots.values()]
    assert len(slots) == len(layers)
    for half in halves:
        assert isinstance(half, LowRank)
        for stack, width in widths_of(half.slots).items():
            own = [s for s in half.slots.values() if stack in s.stacks]
            spans = [s.down if stack == s.stacks[0] else s.up for s in own]
            assert sum(span.stop - span.start for span in spans) == width


def test_ranks_of_a_set_are_summed_layer_by_layer(variant: str, tmp_path: Path) -> None:
    unet = topology(variant).unet
    assert ranks_of(_terms(tmp_path, unet, {})) == (0, 0)
    assert ranks_of(_terms(tmp_path, unet, {"attention": 1.0})) == (3, 0)
    assert ranks_of(_terms(tmp_path, unet, {"attention": 1.0, "everything": 1.0})) == (5, 2)
    assert ranks_of(_terms(tmp_path, unet, dict.fromkeys(FILES, 1.0))) == (10, 7)


_HALVES = ("encoder", "decoder")


def _terms(folder: Path, unet: nn.Module, chosen: dict[str, float]) -> list[tuple[dict, float]]:  # type: ignore[type-arg]
    targets = Targets({"unet": weights_of(unet)})
    store = AdapterStore(Library([folder]), targets, parts=["unet"], budget=10**9)
    return [(store.load(name).updates["unet"], weight) for name, weight in chosen.items()]


def _with_loras(variant: str, folder: Path, chosen: dict[str, float]) -> nn.Module:
    """By diffusers."""
    pipe = topology(variant)
    for name in chosen:
        pipe.load_lora_weights(str(folder / f"{name}.safetensors"), adapter_name=name)
    if chosen:
        pipe.set_adapters(list(chosen), adapter_weights=list(chosen.values()))
    return pipe.unet
