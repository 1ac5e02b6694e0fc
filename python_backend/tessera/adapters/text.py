"""A request's LoRAs in the text encoders, and what of them the UNet gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.adapters.library import Library
from tessera.adapters.merge import BASE, AdapterSet, Patcher
from tessera.adapters.patchable import patchables_of
from tessera.adapters.store import Adapter, AdapterStore
from tessera.adapters.targets import targets_of
from tessera.engines.base import Engine
from tessera.engines.bundle import Bundle
from tessera.errors import InvalidInput
from tessera.plan import AdapterUse
from tessera.requests.request import Lora
from tessera.shared.settings import AdapterSettings


@dataclass(frozen=True)
class Chosen:
    """LoRAs that a request may have.

    Attributes:
        report: what INFO says about them.
        sets: the adapter set of each network that they change.
    """

    report: tuple[dict[str, Any], ...] = ()
    sets: Mapping[str, AdapterSet] = field(default_factory=dict)


class TextAdapters:
    """The LoRAs of a bundle, and its text encoders as they change them.

    Args:
        bundle: whose.
        engines: of its text encoders, by graph.
        settings: the server's, of LoRAs.
    """

    def __init__(
        self, bundle: Bundle, engines: Mapping[str, Engine], settings: AdapterSettings
    ) -> None:
        targets, budget = targets_of(bundle), settings.memory
        library = Library.of_bundle(bundle.folder, settings.folders)
        self._store = AdapterStore(library, targets, parts=list(engines), budget=budget)
        self._patchers = {
            part: Patcher(part, patchables_of(bundle, targets, {part: engine}), budget=budget)
            for part, engine in engines.items()
        }

    def choose(self, loras: Sequence[Lora]) -> Chosen:
        """Look LoRAs up and check their files.

        Raises:
            InvalidInput: one is unknown, named twice, or cannot be used.
        """
        names = [lora.name for lora in loras]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise InvalidInput(f"LORAS[{index}].name", name, "each LoRA once")
        found = [
            (lora, self._store.load(lora.name, f"LORAS[{index}].name"))
            for index, lora in enumerate(loras)
        ]
        parts = {part for _, adapter in found for part in adapter.targets}
        return Chosen(
            report=tuple(_report(lora, adapter) for lora, adapter in found),
            sets={part: _set_of(part, found) for part in parts},
        )

    def apply(self, chosen: Chosen) -> float:
        """Make the text encoders those of a request; returns the milliseconds it took."""
        return sum(
            patcher.apply(chosen.sets.get(part, BASE), self._load)
            for part, patcher in self._patchers.items()
        )

    def _load(self, use: AdapterUse) -> Adapter:
        return self._store.load_digest(use.name, use.digest)


def _set_of(part: str, found: Sequence[tuple[Lora, Adapter]]) -> AdapterSet:
    """In the order of the names, so that requests that want the same share a batch."""
    uses = [
        AdapterUse(adapter.name, adapter.digest, _weight(part, lora))
        for lora, adapter in found
        if part in adapter.targets
    ]
    return tuple(sorted(use for use in uses if use.weight != 0))


def _weight(part: str, lora: Lora) -> float:
    return lora.weight if part == "unet" or lora.text_weight is None else lora.text_weight


def _report(lora: Lora, adapter: Adapter) -> dict[str, Any]:
    text_weight = lora.weight if lora.text_weight is None else lora.text_weight
    return {
        "name": lora.name,
        "digest": adapter.digest,
        "weight": lora.weight,
        "text_weight": text_weight,
    }
