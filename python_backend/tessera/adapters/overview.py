"""Lists the LoRAs of a library for operators and clients. Knows no engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tessera.adapters.library import AdapterFile, Library
from tessera.adapters.store import AdapterStore
from tessera.adapters.targets import targets_of
from tessera.engines.bundle import Bundle
from tessera.errors import InvalidInput


class Overview:
    """The LoRAs of a bundle and of further folders, each file read once as long as it stays the
    same.
    """

    def __init__(self, bundle: Bundle, further: Sequence[Path] = ()) -> None:
        targets = targets_of(bundle)
        self._family = targets.family
        library = Library.of_bundle(bundle.folder, further)
        self._store = AdapterStore(library, targets, parts=(), budget=0)

    def rows(self) -> list[dict[str, Any]]:
        """One row per file, sorted by name.

        Each row has `name`, `bytes`, `family` and `problem`. If the file can be used, `problem` is
        `None`, and the row has `digest`, `layout`, `ranks` and the number of `targets` by network.
        """
        return [self._row(entry) for entry in self._store.library.entries().values()]

    def _row(self, entry: AdapterFile) -> dict[str, Any]:
        row = {"name": entry.name, "bytes": entry.size}
        nothing: dict[str, Any] = {"digest": None, "layout": None, "ranks": None, "targets": {}}
        try:
            adapter = self._store.load(entry.name)
        except InvalidInput as error:
            problem = self._store.refusal(entry.name) or str(error)
            return row | nothing | {"family": None, "problem": problem}
        return row | {
            "digest": adapter.digest,
            "layout": adapter.layout,
            "ranks": list(adapter.ranks),
            "targets": adapter.targets,
            "family": self._family,
            "problem": None,
        }
