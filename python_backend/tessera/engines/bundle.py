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
from tessera.manifest import Manifest, check_file, read_manifest, served_folder

THREADS_VARIABLE = "TESSERA_THREADS"


class Bundle:
    """A bundle on disk.

    Args:
        folder: the folder with `bundle.json`.
        threads: threads per engine call; 0 means one per core.

    Raises:
        BundleError: the manifest is missing, or this version of Tessera cannot read it.
    """

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._threads = threads

    @property
    def threads(self) -> int:
        """Threads of one engine call."""
        return self._threads or len(os.sched_getaffinity(0))

    @classmethod
    def from_environment(cls) -> Bundle:
        """The bundle in `TESSERA_BUNDLE`, with `TESSERA_THREADS` threads.

        Raises:
            BundleError: the variable is not set, or the bundle cannot be served.
        """
        return cls(served_folder(), threads=int(os.environ.get(THREADS_VARIABLE) or 0))

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
        """Open an engine for a graph of the bundle.

        Args:
            graph: name of the graph.
            kind: kind of the engine; by default see `registry.chosen_kind`.

        Raises:
            BundleError: the bundle has no such graph, or a file differs from the manifest.
        """
        if graph not in self.manifest.graphs:
            raise BundleError(f"the bundle {self.folder} has no graph {graph!r}")
        entry = self.manifest.graphs[graph]
        for name in self.manifest.files_of(graph):
            self.file(name)
        self.file(entry.config)
        source = Source.of(self.folder, self.manifest, graph, threads=self._threads)
        return open_engine(kind or chosen_kind(self.folder), source)

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
