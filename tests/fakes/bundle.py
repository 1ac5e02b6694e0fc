"""A bundle without files, its tokenizer, and a recorder that records nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from tessera.templates.storage import Storage
from tessera.templates.store import Recording, RecordingKey, TemplateStore
from tests.fakes.engine import FakeEngine, text_engine, unet_engines, vae_encoder_engine, vae_engine
from tests.samples.requests import MANIFEST
from tests.samples.schedulers import DEMO


class FakeBundle:
    """A bundle without files."""

    manifest = MANIFEST
    scheduler_config = DEMO
    threads = 1

    def __init__(self) -> None:
        encoder, decoder = unet_engines()
        self.engines = {
            "text_encoder": text_engine(),
            "unet_encoder": encoder,
            "unet_decoder": decoder,
            "vae_encoder": vae_encoder_engine(),
            "vae_decoder": vae_engine(),
        }

    def tokenizer(self, folder: str) -> Path:
        return Path(folder)

    def engine(self, name: str) -> FakeEngine:
        return self.engines[name]


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

    def ensure(self, key: RecordingKey) -> tuple[Recording, bool]:
        self.keys.append(key)
        return self._store.record(key, Storage("float32"), [(0, {})]), True

    def attempt(self, key: RecordingKey, *, between: Callable[[], None]) -> bool:
        with self._store.locked(key, wait=False) as held:
            if held:
                self.ensure(key)
            return held
