"""LoRAs in the networks of which templates are recorded.

Knows bundles, engines and torch modules, nothing of Triton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tessera.adapters.library import Library
from tessera.adapters.merge import BASE, AdapterSet, Patcher
from tessera.adapters.patchable import patchables_of
from tessera.adapters.store import Adapter, AdapterStore
from tessera.adapters.targets import targets_of
from tessera.adapters.text import TextAdapters
from tessera.engines.base import Engine
from tessera.engines.bundle import Bundle
from tessera.engines.torch import TorchEngine
from tessera.networks.modules import GraphModule
from tessera.plan import AdapterUse
from tessera.requests.request import Lora
from tessera.shared.settings import AdapterSettings
from tessera.templates.addons import Read


class RecordedAdapters:
    """See `tessera.templates.addons.Adapters`. Files are not looked at before the first LoRA.

    Args:
        bundle: the bundle.
        settings: the operator's settings for LoRAs.
        halves: of the UNet, by graph.
        text: engines of the text encoders, by graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: AdapterSettings,
        halves: Mapping[str, GraphModule],
        text: Mapping[str, Engine],
    ) -> None:
        self._bundle = bundle
        self._settings = settings
        self._halves = halves
        self._engines = text
        self._unet: tuple[Patcher, AdapterStore] | None = None
        self._text: TextAdapters | None = None

    def apply(self, adapter_set: AdapterSet) -> None:
        """See `Adapters.apply`."""
        if self._unet is None:
            if adapter_set == BASE:
                return
            self._unet = self._open()
        patcher, store = self._unet

        def load(use: AdapterUse) -> Adapter:
            return store.load_digest(use.name, use.digest)

        patcher.apply(adapter_set, load)

    def read(self, loras: Sequence[Lora]) -> Read:
        """See `Adapters.read`."""
        if self._text is None:
            self._text = TextAdapters(self._bundle, self._engines, self._settings)
        chosen = self._text.choose(loras)
        self._text.apply(chosen)
        return Read(chosen.sets.get("unet", BASE), chosen.in_text)

    def _open(self) -> tuple[Patcher, AdapterStore]:
        bundle, settings = self._bundle, self._settings
        targets, engines = targets_of(bundle), {g: _engine(h) for g, h in self._halves.items()}
        library = Library.of_bundle(bundle.folder, settings.folders)
        store = AdapterStore(library, targets, parts=["unet"], budget=settings.memory)
        return Patcher("unet", patchables_of(bundle, targets, engines), budget=0), store


def _engine(half: GraphModule) -> TorchEngine:
    """What refits a module, which stays where it is."""
    weight = next(half.parameters())
    return TorchEngine(half, device=str(weight.device), dtype=weight.dtype)
