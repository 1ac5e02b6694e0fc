"""LoRAs in the `encode` model. They are opened in the background and used from the first request
with a LoRA on.

Knows bundles and engines, nothing of Triton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tessera.adapters.prefetch import send_prefetch
from tessera.engines.base import Engine
from tessera.engines.bundle import Bundle
from tessera.requests.request import Lora
from tessera.shared.settings import ServerSettings

if TYPE_CHECKING:
    from tessera.adapters.text import TextAdapters


class TextEncoderAdapters:
    """Applies each request's LoRAs to the text encoders, and returns the plan's fields for them.

    Args:
        bundle: the server's.
        engines: of its text encoders, by graph.
        settings: the server's.

    Attributes:
        in_text: digest and weight of each LoRA that is in the text encoders.
    """

    def __init__(
        self, bundle: Bundle, engines: Mapping[str, Engine], settings: ServerSettings
    ) -> None:
        def open_adapters() -> TextAdapters:
            from tessera.adapters.text import TextAdapters  # opens files: not before it is needed

            return TextAdapters(bundle, engines, settings.adapters)

        self._adapters: Future[TextAdapters] = ThreadPoolExecutor(1).submit(open_adapters)
        self._used, self._bound = False, bundle.manifest.defaults.lora_bound
        self._board = settings.board
        self.in_text: tuple[tuple[str, float], ...] = ()

    def apply(self, loras: Sequence[Lora], *, policy: str, steps: int) -> dict[str, Any]:
        """Switch the text encoders to a request's LoRAs, and tell `denoise` to read them ahead.

        Args:
            loras: the request's LoRAs.
            policy: the request's LoRA policy; with `bounded`, some steps may run without them.
            steps: the request's number of steps.

        Returns:
            Fields of the request's `Plan`.

        Raises:
            InvalidInput: a LoRA is unknown, named twice, or cannot be used.
        """
        if not (loras or self._used):
            return {}
        adapters = self._adapters.result()
        self._used = True
        chosen = adapters.choose(loras)
        self.in_text = chosen.in_text
        unet = chosen.sets.get("unet", ())
        if unet:
            send_prefetch(self._board, unet)
        return {
            "loras": chosen.report,
            "adapters": unet,
            "adapters_by": int(self._bound * steps) if policy == "bounded" else 0,
            "text_refit_ms": adapters.apply(chosen),
        }
