"""Resolves a request's LoRAs to adapter sets and applies them to the text encoders.

Knows bundles and engines, nothing of Triton.
"""

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
    """The checked LoRAs of a request.

    Attributes:
        report: their entries in INFO.
        sets: the adapter set of each network that they change, by part.
    """

    report: tuple[dict[str, Any], ...] = ()
    sets: Mapping[str, AdapterSet] = field(default_factory=dict)

    @property
    def in_text(self) -> tuple[tuple[str, float], ...]:
        """Digest and weight of each LoRA that changes a text encoder."""
        uses = {use for part, uses in self.sets.items() if part != "unet" for use in uses}
        return tuple(sorted((use.digest, use.weight) for use in uses))


class TextAdapters:
    """The LoRAs of a bundle, applied to its text encoders.

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
        """Find a request's LoRAs and check their files.

        Raises:
            InvalidInput: a LoRA is unknown, named twice, or cannot be used.
        """
        names = [lora.name for lora in loras]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise InvalidInput(f"LORAS[{index}].name", name, "each LoRA once")
        adapters = [
            (lora, self._store.load(lora.name, f"LORAS[{index}].name"))
            for index, lora in enumerate(loras)
        ]
        parts = {part for _, adapter in adapters for part in adapter.targets}
        return Chosen(
            report=tuple(_report(lora, adapter) for lora, adapter in adapters),
            sets={part: _set_of(part, adapters) for part in parts},
        )

    def apply(self, chosen: Chosen) -> float:
        """Switch the text encoders to a request's LoRAs; returns the milliseconds it took."""
        return sum(
            patcher.apply(chosen.sets.get(part, BASE), self._load)
            for part, patcher in self._patchers.items()
        )

    def _load(self, use: AdapterUse) -> Adapter:
        return self._store.load_digest(use.name, use.digest)


def _set_of(part: str, adapters: Sequence[tuple[Lora, Adapter]]) -> AdapterSet:
    """The adapter set, sorted by name, so that requests with the same LoRAs share a batch."""
    uses = [
        AdapterUse(adapter.name, adapter.digest, _weight(part, lora))
        for lora, adapter in adapters
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
        "kinds": list(adapter.kinds),
        "skipped": list(adapter.skipped),
    }
