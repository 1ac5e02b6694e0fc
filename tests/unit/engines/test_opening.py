"""Every network is opened where it is placed: a server with a GPU must not use the CPU unseen.

No GPU is needed: torch's device `meta` and recorded calls stand for three.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.adapters.recorded import RecordedAdapters
from tessera.engines import bundle as module
from tessera.engines import devices, registry
from tessera.engines.bundle import Bundle
from tessera.engines.devices import Device, devices_at
from tessera.engines.registry import Source, chosen_kind
from tessera.manifest import CONTROLNET, network_of
from tessera.shared.settings import AdapterSettings, EngineKind, PlaceSettings
from tessera.templates.recorder import open_networks
from tests.fakes.engine import text_engine
from tests.samples.bundles import Small

SOURCES = Path(module.__file__).parents[1]
PLACES = PlaceSettings(unet=("gpu:0",), vae="gpu:1", text_encoders="gpu:2")
PLACED = {"unet": "cuda:0", "vae": "cuda:1", "text_encoder": "cuda:2"}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Graph and device of every engine and module, none of which is opened."""
    calls: list[tuple[str, str]] = []

    def note(source: Source) -> None:
        calls.append((source.graph, source.device))

    def engine(kind: str, source: Source) -> Any:
        note(source)
        return text_engine()

    def modules(source: Source) -> Any:
        note(source)
        return registry.open_module(source).float()

    def at(places: Any, **options: Any) -> list[Device]:
        return [Device(place, f"cuda:{place[-1]}") for place in places]

    monkeypatch.setattr(module, "open_engine", engine)
    monkeypatch.setattr(module, "open_placed", modules)
    monkeypatch.setattr(module, "devices_at", at)
    return calls


def test_graphs_are_opened_where_their_network_is(
    small: Callable[[str], Small], opened: list[tuple[str, str]]
) -> None:
    bundle = Bundle(small("sd15").bundle, places=PLACES, engine=EngineKind.TORCH)
    graphs = [g for g in bundle.manifest.graphs if not g.startswith(CONTROLNET)]
    for graph in graphs:  # each ControlNet's process is told its device by Triton
        bundle.engine(graph)
    bundle.engines("unet_encoder", bundle.unet_devices())
    assert len(opened) == len(graphs) + 1
    for graph, device in opened:
        assert device == PLACED[network_of(graph)], graph


def test_recordings_are_made_where_the_networks_are(
    small: Callable[[str], Small], opened: list[tuple[str, str]]
) -> None:
    bundle = Bundle(small("sd15").bundle, places=PLACES, engine=EngineKind.TORCH)
    open_networks(bundle, partial(RecordedAdapters, bundle, AdapterSettings()))
    graphs = [graph for graph, _ in opened]
    assert {"unet_encoder", "unet_decoder", "vae_encoder", "text_encoder"} == set(graphs)
    for graph, device in opened:
        assert device == PLACED[network_of(graph)], graph


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16)],
    ids=["fp32", "bf16"],
)
def test_modules_on_a_gpu_compute_in_half_precision(
    monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, expected: torch.dtype
) -> None:
    source = Source("unet_encoder", Path("a"), {}, Path("c"), "sd15", device="meta")
    monkeypatch.setattr(registry, "open_module", lambda source: torch.nn.Linear(2, 2, dtype=stored))
    monkeypatch.setattr(registry, "overflows_in_half", lambda source: False)
    weight = next(registry.open_placed(source).parameters())
    assert (weight.device.type, weight.dtype) == ("meta", expected)


def test_only_bundles_open_networks() -> None:
    """They know the places."""
    openers = {"open_engine", "open_module", "open_placed"}
    found = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name | ast.alias | ast.Attribute)
        and (getattr(node, "id", None) or getattr(node, "name", None) or node.attr) in openers  # type: ignore[union-attr]
    }
    assert found == {"engines/bundle.py", "engines/registry.py"}


def test_a_gpu_that_torch_does_not_find_is_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_kind(Path("none"), device="cuda:0") is EngineKind.TORCH
    assert chosen_kind(Path("none")) is EngineKind.ONNXRUNTIME


@pytest.mark.parametrize("driver", [True, False])
def test_a_driver_without_a_gpu_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, driver: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "has_driver", lambda: driver)
    assert [device.place for device in devices_at(["auto"])] == ["cpu"]
    assert ("torch finds no GPU: the CPU is used" in caplog.text) is driver
    caplog.clear()
    devices_at(["cpu"])
    assert not caplog.text
