"""The server's ControlNets, loaded and unloaded through Triton's model control."""

from __future__ import annotations

import contextlib
import os
import time

from tessera.board import control_table_path
from tessera.controls.residency import Residency
from tessera.controls.settings import ControlSettings
from tessera.errors import Unavailable
from tessera.manifest import CONTROLNET, read_manifest, served_folder
from tessera.processes import model_processes
from tessera.triton import pb

_ENDS_WITHIN_S = 30.0


class ControlModels:
    """See `tessera.controls.residency.Models`.

    A server that is not in explicit mode has loaded every model and keeps it: unloading one then
    has no effect but a line in the log.
    """

    def load(self, name: str) -> None:
        """Load it."""
        pb.load_model(f"{CONTROLNET}{name}")

    def unload(self, name: str) -> None:
        """Unload it and wait for the end of its process, which holds the memory."""
        model = f"{CONTROLNET}{name}"
        with contextlib.suppress(Unavailable):  # the log says so
            pb.unload_model(model)
            until = time.monotonic() + _ENDS_WITHIN_S
            while model in model_processes(os.getppid()).values() and time.monotonic() < until:
                time.sleep(0.02)

    def is_ready(self, name: str) -> bool:
        """Whether it is loaded."""
        return pb.is_ready(f"{CONTROLNET}{name}")


def open_residency() -> Residency:
    """Of the bundle and the settings that the environment names."""
    manifest = read_manifest(served_folder())
    settings = ControlSettings.from_environment()
    return Residency(
        control_table_path(),
        {name: manifest.controlnet_bytes(name) for name in manifest.controlnets},
        budget=settings.memory,
        pinned=settings.pinned,
        models=ControlModels(),
    )
