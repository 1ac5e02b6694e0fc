"""`adapters`: lists the LoRAs that requests may name, and tells what the bundle accepts.

The first list imports torch, which takes most of a second and 100 MB. A server with a large folder
of LoRAs does this when it starts, in a thread; others wait until they are asked.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tessera.adapters.library import Library
from tessera.contract import ADAPTER_ACTIONS, LIMITS, modes_of
from tessera.edits.measured import policies_of
from tessera.engines.bundle import Bundle
from tessera.requests.request import read_action
from tessera.shared.settings import ServerSettings
from tessera.triton import pb

if TYPE_CHECKING:
    from tessera.adapters.overview import Overview

_LARGE = 1000
"""LoRAs of a folder whose list is prepared at the start."""


class TritonPythonModel:
    """ACTION -> RESULT (JSON)."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the bundle."""
        self._settings = ServerSettings.from_environment()
        self._bundle = Bundle.of(self._settings)
        bundle = self._bundle
        self._policies, _ = policies_of(bundle.folder, bundle.manifest.digest)
        self._one_list = threading.Lock()
        threading.Thread(target=self._prepare, name="first list", daemon=True).start()

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        return pb.answer_each(requests, self._answer)

    def _answer(self, request: pb.Request) -> list[pb.TensorHandle]:
        action = read_action(pb.arrays(request), ADAPTER_ACTIONS)
        answer = self._served() if action == "bundle" else {"adapters": self._rows()}
        return [pb.tensor("RESULT", json.dumps(answer).encode())]

    def _served(self) -> dict[str, Any]:
        manifest = self._bundle.manifest
        return {
            "name": manifest.name,
            "digest": manifest.digest,
            "variant": manifest.variant,
            "defaults": dataclasses.asdict(manifest.defaults),
            "min_size": manifest.limits.min_size,
            "max_size": manifest.limits.max_size,
            "controlnets": list(manifest.controlnets),
            "control_modes": {
                name: modes_of(kind.modes)
                for name, kind in manifest.control_kinds.items()
                if kind.modes
            },
            "sparse": manifest.can_be_sparse,
            "measured": self._policies.measured,
            "schedulers": {name: manifest.max_steps(name) for name in manifest.offered},
            "limits": LIMITS,
            "clip_skip": manifest.limits.clip_skip,
        }

    def _prepare(self) -> None:
        if len(Library.of_bundle(self._bundle.folder, self._settings.adapters.folders)) >= _LARGE:
            self._rows()

    def _rows(self) -> list[dict[str, Any]]:
        with self._one_list:
            return self._overview.rows()

    @cached_property
    def _overview(self) -> Overview:
        from tessera.adapters.overview import Overview  # imports torch

        return Overview(self._bundle, self._settings.adapters.folders)
