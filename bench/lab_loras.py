"""LoRAs in the networks of `bench/edit_lab.py`, by refit as in the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tessera.adapters.library import Library
from tessera.adapters.merge import BASE, AdapterSet, Patcher
from tessera.adapters.patchable import patchables_of
from tessera.adapters.store import AdapterStore
from tessera.adapters.targets import targets_of
from tessera.adapters.text import TextAdapters
from tessera.engines.base import Engine
from tessera.engines.bundle import Bundle
from tessera.requests.request import Lora
from tessera.shared.settings import AdapterSettings


class LabLoras:
    """Puts LoRAs into a bundle's engines.

    Args:
        bundle: the bundle.
        text: its text encoders, by graph.
        unet: its UNet's engines, by graph.
    """

    def __init__(
        self, bundle: Bundle, text: Mapping[str, Engine], unet: Mapping[str, Engine]
    ) -> None:
        settings = AdapterSettings()
        targets = targets_of(bundle)
        library = Library.of_bundle(bundle.folder)
        self._store = AdapterStore(library, targets, parts=["unet"], budget=settings.memory)
        self._text = TextAdapters(bundle, text, settings)
        self._unet = Patcher("unet", patchables_of(bundle, targets, unet), budget=settings.memory)

    def apply(self, loras: Sequence[Lora]) -> None:
        """Put LoRAs into the engines."""
        chosen = self._text.choose(loras)
        self._text.apply(chosen)
        load = self._store.load_digest
        self._unet.apply(chosen.sets.get("unet", BASE), lambda use: load(use.name, use.digest))

    def of_unet(self, loras: Sequence[Lora]) -> AdapterSet:
        """The set that LoRAs are to the UNet."""
        return self._text.choose(loras).sets.get("unet", BASE)
