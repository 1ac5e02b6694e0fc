"""A bundle without files, its tokenizer, and a recorder that records nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from tessera.engines.devices import Device, Devices
from tessera.plan import AdapterUse
from tessera.requests.request import Lora
from tessera.templates.addons import Controls, NoControls, Read
from tessera.templates.storage import Storage
from tessera.templates.store import Recording, RecordingKey, TemplateStore
from tessera.types import Tensors
from tests.fakes.engine import FakeEngine, text_engine, unet_engines, vae_encoder_engine, vae_engine
from tests.samples.requests import MANIFEST
from tests.samples.schedulers import DEMO


class FakeBundle:
    """A bundle without files, its UNet on one device or several."""

    manifest = MANIFEST
    scheduler_config = DEMO
    threads = 1
    folder = Path("nowhere")

    def __init__(self, devices: int = 1) -> None:
        halves = [unet_engines() for _ in range(devices)]
        self.devices = Devices([Device(f"gpu:{i}", "cpu") for i in range(devices)])
        self.replicas = {
            "unet_encoder": [encoder for encoder, _ in halves],
            "unet_decoder": [decoder for _, decoder in halves],
        }
        self.by_graph = {
            "text_encoder": text_engine(),
            "unet_encoder": self.replicas["unet_encoder"][0],
            "unet_decoder": self.replicas["unet_decoder"][0],
            "vae_encoder": vae_encoder_engine(),
            "vae_decoder": vae_engine(),
        }

    def tokenizer(self, folder: str) -> Path:
        return Path(folder)

    def text_widths(self, graphs: Sequence[str]) -> list[int]:
        return []

    def text_width(self, graph: str) -> int:
        return 8

    def engine(self, name: str) -> FakeEngine:
        return self.by_graph[name]

    def decoder_channels(self) -> int:
        return 72

    def skip_numbers(self) -> float:
        return 100.0

    def memory_of(self, graph: str) -> tuple[int, int]:
        return 10**9, 4

    def unet_devices(self) -> Devices:
        return self.devices

    def engines(self, name: str, devices: Devices) -> list[FakeEngine]:
        return self.replicas[name]


class FakeTokenizer:
    """Token ids are character codes."""

    model_max_length = 16

    def __call__(self, text: str | list[str], **options: object) -> SimpleNamespace:
        if isinstance(text, str):
            return SimpleNamespace(input_ids=[ord(c) for c in text])
        return SimpleNamespace(input_ids=[[ord(c) for c in t[:16].ljust(16)] for t in text])


class FakeRecorder:
    """Records nothing but the keys it is asked for."""

    def __init__(self, store: TemplateStore) -> None:
        self._store = store
        self.keys = list[RecordingKey]()

    def release(self) -> None:
        pass

    def embed(self, prompt: str, syntax: str, clip_skip: int) -> Tensors:
        return {"hidden": torch.full((3, 2), float(len(prompt))), "pooled": torch.zeros(1)}

    @contextmanager
    def reading(self, loras: Sequence[Lora]) -> Iterator[Read]:
        """Each changes the UNet and a text encoder; its digest is its name."""
        unet = tuple(AdapterUse(each.name, each.name, each.weight) for each in loras)
        yield Read(unet, tuple((use.digest, use.weight) for use in unet))

    def ensure(self, key: RecordingKey, controls: Controls) -> tuple[Recording, bool]:
        self.keys.append(key)
        return self._store.record(
            key, Storage("float32"), [(step, {}) for step in range(key.steps)]
        ), True

    def attempt(self, key: RecordingKey, *, between: Callable[[], None]) -> bool:
        with self._store.locked(key, wait=False) as held:
            if held:
                self.ensure(key, NoControls())
            return held
