"""An opened bundle: its manifest, its files (checked on use) and its engines.

Knows no requests and no Triton.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from tessera.engines.base import Engine
from tessera.engines.registry import Source, chosen_kind, open_engine
from tessera.errors import BundleError
from tessera.manifest import Manifest, check_file, network_of, read_manifest
from tessera.networks.outline import OUTLINE, Outline
from tessera.shared.settings import EngineKind, ServerSettings


class Bundle:
    """A bundle on disk.

    Args:
        folder: where `bundle.json` is.
        threads: threads per engine call; 0 is one per core.
        engine: what runs its graphs.
        compiled: whether torch engines compile the UNet.

    Raises:
        BundleError: the manifest is missing, or this version of Tessera cannot read it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 0,
        engine: EngineKind = EngineKind.AUTO,
        compiled: bool = False,
    ) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._threads = threads
        self._engine = engine
        self._compiled = compiled

    @property
    def threads(self) -> int:
        """Threads of one engine call."""
        return self._threads or len(os.sched_getaffinity(0))

    @classmethod
    def of(cls, settings: ServerSettings) -> Bundle:
        """The bundle that a server is to serve.

        Raises:
            BundleError: it cannot be served.
        """
        return cls(
            settings.bundle,
            threads=settings.threads,
            engine=settings.engine,
            compiled=settings.torch_compile,
        )

    def file(self, name: str) -> Path:
        """Path of a file of the bundle, after checking its digest against the manifest.

        Raises:
            BundleError: the manifest does not list the file, or its digest differs.
        """
        if name not in self.manifest.files:
            raise BundleError(f"the bundle {self.folder} has no file {name!r}")
        check_file(self.folder, name, self.manifest.files[name])
        return self.folder / name

    def engine(self, graph: str, kind: str | None = None) -> Engine:
        """The engine that runs one of the bundle's graphs, of that kind or the bundle's."""
        if graph not in self.manifest.graphs:
            raise BundleError(f"the bundle {self.folder} has no graph {graph!r}")
        entry = self.manifest.graphs[graph]
        for name in self.manifest.files_of(graph):
            self.file(name)
        self.file(entry.config)
        source = Source.of(
            self.folder, self.manifest, graph, threads=self._threads, compiled=self._compiled
        )
        return open_engine(kind or chosen_kind(self.folder, self._engine), source)

    def outline(self, part: str) -> Outline:
        """Structure of the UNet or a text encoder (see `manifest.network_of`); a bundle of an older
        Tessera does not hold it, and finding it out then takes seconds.

        Raises:
            BundleError: the bundle has no such network.
        """
        graphs = self.manifest.graphs
        config = next((e.config for g, e in graphs.items() if network_of(g) == part), None)
        if config is None:
            raise BundleError(f"the bundle {self.folder} has no network {part!r}")
        name = str(Path(config).with_name(OUTLINE))
        if name in self.manifest.files:
            return Outline.from_json(self.file(name).read_text())
        from tessera.networks.walk import outline_from_config

        return outline_from_config(part, json.loads(self.file(config).read_text()))

    def tokenizer(self, folder: str) -> Path:
        """The folder of a tokenizer, after checking its files against the manifest."""
        for name in self.manifest.files:
            if name.startswith(f"{folder}/"):
                self.file(name)
        return self.folder / folder

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """The checkpoint's `scheduler_config.json`."""
        content: dict[str, Any] = json.loads(
            self.file("scheduler/scheduler_config.json").read_text()
        )
        return content
