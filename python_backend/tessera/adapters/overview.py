"""Lists the LoRAs of a library, and its files of textual inversion, for operators and clients.
Knows no engines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tessera.adapters.inversion import Inversion, Inversions
from tessera.adapters.library import AdapterFile, Library
from tessera.adapters.store import AdapterStore
from tessera.adapters.targets import targets_of
from tessera.engines.bundle import Bundle
from tessera.errors import InvalidInput
from tessera.variants import VARIANTS

_READS_S, _FILES, _BYTES = 0.2, 16, 64_000_000
"""How long a list reads files that it has not read before, for a folder may have thousands, and how
many and how large ones it reads however long it takes: on a busy machine too, a list of a usual
folder is whole.
"""


class Overview:
    """The LoRAs of a bundle and of further folders, each file read once as long as it stays the
    same.
    """

    def __init__(self, bundle: Bundle, further: Sequence[Path] = ()) -> None:
        targets = targets_of(bundle)
        self._family = targets.family
        library = Library.of_bundle(bundle.folder, further)
        self._store = AdapterStore(library, targets, parts=(), budget=0)
        graphs = VARIANTS[bundle.manifest.variant].text_encoders
        self._inversions = Inversions(bundle.folder, further, bundle.text_widths(graphs))
        self._graphs = graphs

    def rows(self) -> list[dict[str, Any]]:
        """One row per file, sorted by name.

        Each row has `name`, `bytes`, `family` and `problem`. If the file can be used, `problem` is
        `None`, and the row has `digest`, `layout`, `kinds`, `ranks`, the number of `targets` by
        network, and the rules by which tensors were `skipped`. A file of textual inversion has
        the kind `textual_inversion`, its `word`, and the number of its vectors as targets.

        Of a large folder, a call reads some files only, at least 16 or 64 MB. A file that has not
        been read yet has neither `family` nor `problem`.
        """
        inversions = {each.file.path: self._of_words(each) for each in self._inversions.files()}
        entries = self._store.library.entries().values()
        loras = [entry for entry in entries if entry.path not in inversions]
        rows = [*self._rows_of(loras), *inversions.values()]
        return sorted(rows, key=lambda row: str(row["name"]))

    def _rows_of(self, loras: Sequence[AdapterFile]) -> Iterator[dict[str, Any]]:
        began, files, size = time.monotonic(), 0, 0
        for entry in loras:
            if self._store.knows(entry):
                yield self._row(entry, read=True)
                continue
            few = files < _FILES and size < _BYTES
            read = few or time.monotonic() - began < _READS_S
            files, size = files + read, size + read * entry.size
            yield self._row(entry, read=read)

    def _of_words(self, inversion: Inversion) -> dict[str, Any]:
        counts = map(len, inversion.vectors)
        return {
            "name": inversion.file.name,
            "bytes": inversion.file.size,
            "digest": None,
            "layout": None,
            "kinds": ["textual_inversion"],
            "ranks": None,
            "targets": dict(zip(self._graphs, counts, strict=False)),
            "skipped": [],
            "family": None if inversion.problem else self._family,
            "problem": inversion.problem or None,
            "word": inversion.word,
        }

    def _row(self, entry: AdapterFile, *, read: bool) -> dict[str, Any]:
        row = {"name": entry.name, "bytes": entry.size, "word": None}
        nothing: dict[str, Any] = {
            "digest": None,
            "layout": None,
            "kinds": [],
            "ranks": None,
            "targets": {},
            "skipped": [],
        }
        if not read:
            return row | nothing | {"family": None, "problem": None}
        try:
            adapter = self._store.load_file(entry)
        except InvalidInput as error:
            problem = self._store.refusal(entry.name) or str(error)
            return row | nothing | {"family": None, "problem": problem}
        return row | {
            "digest": adapter.digest,
            "layout": adapter.layout,
            "kinds": list(adapter.kinds),
            "ranks": adapter.ranks and list(adapter.ranks),
            "targets": adapter.targets,
            "skipped": list(adapter.skipped),
            "family": self._family,
            "problem": None,
        }
