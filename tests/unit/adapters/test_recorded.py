"""LoRAs in the networks of which templates are recorded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tessera.adapters.library import Library
from tessera.adapters.merge import merge
from tessera.adapters.recorded import RecordedAdapters
from tessera.adapters.store import AdapterStore
from tessera.adapters.targets import targets_of
from tessera.engines.bundle import Bundle
from tessera.errors import InvalidInput, Unavailable
from tessera.plan import AdapterUse
from tessera.requests.request import Lora
from tessera.shared.settings import AdapterSettings
from tessera.templates.addons import Read
from tessera.templates.recorder import Networks, open_networks
from tests.samples.adapters import PROMPT


def weights_of(networks: Networks) -> dict[str, torch.Tensor]:
    halves = (networks.encoder, networks.decoder)
    return {name: p.detach().clone() for half in halves for name, p in half.named_parameters()}


@torch.inference_mode()
def test_loras_are_put_in_and_taken_out(folders: Callable[[str], Path]) -> None:
    bundle = Bundle(folders("sd15"), threads=1)
    networks = open_networks(bundle, partial(RecordedAdapters, bundle, AdapterSettings()))
    base, text = weights_of(networks), networks.embed(PROMPT)["hidden"]
    read = networks.adapters.read([Lora(name="a", weight=0.5, text_weight=0.25)])
    (use,) = read.unet
    assert (use.name, use.weight, read.text) == ("a", 0.5, ((use.digest, 0.25),))
    assert not torch.equal(networks.embed(PROMPT)["hidden"], text)
    networks.adapters.apply(read.unet)
    library = Library.of_bundle(bundle.folder)
    store = AdapterStore(library, targets_of(bundle), parts=["unet"], budget=10**9)
    updates = store.load("a").updates["unet"]
    adapted = weights_of(networks)
    for name, weight in adapted.items():
        expected = merge(base[name], [(updates[name], 0.5)]) if name in updates else base[name]
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)
    assert any(not torch.equal(adapted[name], base[name]) for name in base)
    assert networks.adapters.read(()) == Read()
    assert torch.equal(networks.embed(PROMPT)["hidden"], text)
    networks.adapters.apply(())
    assert all(torch.equal(weight, base[name]) for name, weight in weights_of(networks).items())


def test_a_file_that_has_changed_is_not_recorded(folders: Callable[[str], Path]) -> None:
    bundle = Bundle(folders("sd15"), threads=1)
    networks = open_networks(bundle, partial(RecordedAdapters, bundle, AdapterSettings()))
    with pytest.raises(Unavailable, match="the file of the LoRA 'a' has been replaced"):
        networks.adapters.apply((AdapterUse("a", "0" * 16, 1.0),))
    with pytest.raises(InvalidInput, match=r"LORAS\[0\].name is 'none'"):
        networks.adapters.read([Lora(name="none")])
