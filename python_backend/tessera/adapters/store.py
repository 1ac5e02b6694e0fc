"""Parsed adapters in memory: a tier between disk and engines, within a byte budget.

Knows files and targets, nothing of engines.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tessera.adapters.formats import ParsedAdapter, read_adapter
from tessera.adapters.library import AdapterFile, Library
from tessera.adapters.lru import ByteLru
from tessera.adapters.targets import Targets, Updates
from tessera.adapters.updates import Unusable
from tessera.errors import InvalidInput, Unavailable

MAX_AHEAD = 8
"""With this many reads in progress, none is started for requests that still wait in a queue."""
_ODD = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors that unexpected file contents may raise in a parser."""


@dataclass(frozen=True)
class Adapter:
    """A parsed adapter that fits the bundle.

    Attributes:
        name, digest: name and digest of its file.
        layout: see `ParsedAdapter`.
        ranks: smallest and largest rank of its factors; `None` if it has none.
        targets: number of weights that it changes, by part.
        updates: its updates of the parts that are kept.
        kinds: see `ParsedAdapter`.
        skipped: see `ParsedAdapter`.
    """

    name: str
    digest: str
    layout: str
    ranks: tuple[int, int] | None
    targets: dict[str, int]
    updates: Updates
    kinds: tuple[str, ...] = ("lora",)
    skipped: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(u.nbytes for part in self.updates.values() for u in part.values())


@dataclass(frozen=True)
class _Verdict:
    """The result for one version of a file: its digest, or the reason why it cannot be used."""

    version: tuple[int, ...]
    digest: str = ""
    refused: str = ""


class AdapterStore:
    """Loads adapters, each once per version of its file. Safe to use from several threads.

    Args:
        library: the adapter files.
        targets: the weights that adapters have to fit.
        parts: the networks whose updates are kept.
        budget: bytes of updates to keep.

    Attributes:
        reads: number of files read.
    """

    def __init__(
        self, library: Library, targets: Targets, *, parts: Sequence[str], budget: int
    ) -> None:
        self.library = library
        self._targets = targets
        self._parts = frozenset(parts)
        self._held: ByteLru[str, Adapter] = ByteLru(budget)
        self._verdicts: dict[str, _Verdict] = {}
        self._loading: dict[str, threading.Lock] = {}
        self._ahead: set[str] = set()
        self._two_reads = threading.Semaphore(2)
        self.reads = 0

    def load(self, name: str, field: str = "name") -> Adapter:
        """The adapter of a name, from the current version of its file.

        Args:
            name: the LoRA's name.
            field: the request field that has the name, for the error.

        Raises:
            InvalidInput: the name is unknown, or its file cannot be used.
        """
        return self.load_file(self.library.find(name, field), field)

    def load_file(self, entry: AdapterFile, field: str = "name") -> Adapter:
        """As `load`, of a file that the library has found."""
        with self._loading.setdefault(entry.name, threading.Lock()):
            verdict = self._verdicts.get(entry.name)
            current = verdict if verdict and verdict.version == entry.version else None
            if current and current.refused:
                raise _unusable(entry.name, field, current.refused)
            adapter = self._held.get(current.digest) if current else None
            if adapter is None:
                return self._read(entry, field)
            # A file with the same contents may have been read since, under its own name.
            return adapter if adapter.name == entry.name else replace(adapter, name=entry.name)

    def knows(self, entry: AdapterFile) -> bool:
        """Whether this version of a file has been read."""
        verdict = self._verdicts.get(entry.name)
        return verdict is not None and verdict.version == entry.version

    def refusal(self, name: str) -> str:
        """The reason why a file could not be used when it was last loaded; empty if it could."""
        verdict = self._verdicts.get(name)
        return verdict.refused if verdict else ""

    def load_digest(self, name: str, digest: str) -> Adapter:
        """The adapter of a name and digest, as it was when a request named it.

        Raises:
            Unavailable: its file has changed or was removed since.
        """
        adapter = self._held.get(digest)
        if adapter is not None:
            return adapter
        try:
            adapter = self.load(name)
        except InvalidInput as error:
            raise Unavailable(f"the LoRA {name!r} is gone: {error}") from error
        if adapter.digest != digest:
            raise Unavailable(f"the file of the LoRA {name!r} has been replaced; try again")
        return adapter

    def read_ahead(self, name: str, digest: str, *, queued: bool = False) -> None:
        """Load an adapter that will be needed soon in another thread, at most two at a time.

        Errors are reported when the adapter is needed.

        Args:
            name: the LoRA's name.
            digest: the digest of its file.
            queued: whether its request still waits in a queue. If so, and `MAX_AHEAD` reads are in
                progress, the call does nothing.
        """
        if queued and len(self._ahead) >= MAX_AHEAD:
            return
        if digest not in self._held and digest not in self._ahead:
            self._ahead.add(digest)
            threading.Thread(
                target=self._load_ahead,
                args=(name, digest),
                name=f"read ahead {name}",
                daemon=True,
            ).start()

    @property
    def held(self) -> list[str]:
        """Names of the adapters in memory, sorted."""
        return sorted({adapter.name for _, adapter in self._held.items()})

    def touch(self, digest: str) -> None:
        """Mark an adapter as used, so that reading ahead does not evict it."""
        self._held.get(digest)

    def reading(self, digest: str) -> bool:
        """Whether an adapter is still being read ahead."""
        return digest in self._ahead

    def _load_ahead(self, name: str, digest: str) -> None:
        try:
            with self._two_reads:
                self.load_digest(name, digest)
        except (InvalidInput, Unavailable):
            return
        finally:
            self._ahead.discard(digest)

    def _read(self, entry: AdapterFile, field: str) -> Adapter:
        if entry.problem:
            self._verdicts[entry.name] = _Verdict(entry.version, refused=entry.problem)
            raise _unusable(entry.name, field, entry.problem)
        self.reads += 1
        try:
            file = read_adapter(entry.path, self._targets)
        except (Unusable, *_ODD) as error:
            unexpected = f"has unexpected contents: {error!r}"
            reason = str(error) if isinstance(error, Unusable) else unexpected
            self._verdicts[entry.name] = _Verdict(entry.version, refused=reason)
            raise _unusable(entry.name, field, reason) from error
        adapter = self._adapter(entry.name, file)
        self._verdicts[entry.name] = _Verdict(entry.version, digest=file.digest)
        self._held.put(file.digest, adapter, adapter.nbytes)
        return adapter

    def _adapter(self, name: str, file: ParsedAdapter) -> Adapter:
        """A parsed file, with the updates of the parts that are kept."""
        every = [update for part in file.updates.values() for update in part.values()]
        ranks = [update.rank for update in every if update.rank is not None]
        return Adapter(
            name=name,
            digest=file.digest,
            layout=file.layout,
            ranks=(min(ranks), max(ranks)) if ranks else None,
            targets={part: len(of_part) for part, of_part in file.updates.items()},
            updates={p: updates for p, updates in file.updates.items() if p in self._parts},
            kinds=file.kinds,
            skipped=file.skipped,
        )


def _unusable(name: str, field: str, reason: str) -> InvalidInput:
    return InvalidInput(field, name, f"a LoRA that fits this bundle; this file {reason}")
