"""`adapters`: lists the LoRAs that requests may name."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tessera.contract import ADAPTER_ACTIONS
from tessera.engines.bundle import Bundle
from tessera.requests.request import read_action
from tessera.shared.settings import ServerSettings
from tessera.triton import pb

if TYPE_CHECKING:
    from tessera.adapters.overview import Overview


class TritonPythonModel:
    """ACTION -> RESULT (JSON)."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the bundle."""
        self._settings = ServerSettings.from_environment()
        self._bundle = Bundle.of(self._settings)

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        return pb.answer_each(requests, self._answer)

    def _answer(self, request: pb.Request) -> list[pb.TensorHandle]:
        read_action(pb.arrays(request), ADAPTER_ACTIONS)
        return [pb.tensor("RESULT", json.dumps({"adapters": self._overview.rows()}).encode())]

    @cached_property
    def _overview(self) -> Overview:
        from tessera.adapters.overview import Overview  # imports diffusers' loaders: seconds

        return Overview(self._bundle, self._settings.adapters.folders)
