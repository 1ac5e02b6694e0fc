"""Parsed LoRAs in memory: a tier between the disk and the engines, within a byte budget."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tessera.adapters.formats import Unusable, read_adapter
from tessera.adapters.library import AdapterFile, Library
from tessera.adapters.lru import ByteLru
from tessera.adapters.targets import Targets, Updates
from tessera.errors import InvalidInput, Unavailable

MAX_AHEAD = 8
"""Reads under way, from which on none are begun for requests that are not being denoised yet."""
_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a file raises whose contents nobody has thought of."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA that fits the bundle.

    Attributes:
        name, digest: of the file.
        layout: see `ParsedAdapter`.
        ranks: of its updates: (smallest, largest).
        targets: how many weights it changes, by part.
        updates: of the parts that are kept.
    """

    name: str
    digest: str
    layout: str
    ranks: tuple[int, int]
    targets: dict[str, int]
    updates: Updates

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(u.nbytes for part in self.updates.values() for u in part.values())


@dataclass(frozen=True)
class _Verdict:
    """What is known of one version of a file: its digest, or why it cannot be used."""

    version: tuple[int, int, int]
    digest: str = ""
    refused: str = ""


class AdapterStore:
    """Loads LoRAs once, as long as their files stay as they are; usable from several threads.

    Args:
        library: where the files are.
        targets: what they have to fit.
        parts: the networks whose updates are kept.
        budget: bytes of updates to keep.
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
        self._two = threading.Semaphore(2)
        self.reads = 0

    def load(self, name: str, field: str = "name") -> Adapter:
        """A LoRA as its file is now.

        Raises:
            InvalidInput: there is none of that name, or its file cannot be used; `field` is where
                the name stood.
        """
        entry = self.library.find(name, field)
        with self._loading.setdefault(name, threading.Lock()):
            verdict = self._verdicts.get(name)
            current = verdict if verdict and verdict.version == entry.version else None
            if current and current.refused:
                raise _unusable(name, field, current.refused)
            held = self._held.get(current.digest) if current else None
            return held or self._read(entry, field)

    def refusal(self, name: str) -> str:
        """Why a file could not be used when it was last loaded; empty if it could."""
        verdict = self._verdicts.get(name)
        return verdict.refused if verdict else ""

    def load_digest(self, name: str, digest: str) -> Adapter:
        """A LoRA as it was when a request named it.

        Raises:
            Unavailable: its file has changed since, or has gone.
        """
        held = self._held.get(digest)
        if held is not None:
            return held
        try:
            adapter = self.load(name)
        except InvalidInput as error:
            raise Unavailable(f"the LoRA {name!r} is gone: {error}") from error
        if adapter.digest != digest:
            raise Unavailable(f"the file of the LoRA {name!r} has been replaced; try again")
        return adapter

    def read_ahead(self, name: str, digest: str, *, queued: bool = False) -> None:
        """Load in another thread what will be wanted soon, two at a time; what goes wrong will be
        said when it is wanted.

        Args:
            name: of the LoRA.
            digest: of its file.
            queued: whether it is for a request that still waits in a queue: left to later while
                `MAX_AHEAD` are on their way.
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

    def touch(self, digest: str) -> None:
        """Count a LoRA as used, so that what is read ahead does not drive it out."""
        self._held.get(digest)

    def reading(self, digest: str) -> bool:
        """Whether a LoRA is being read ahead and not there yet."""
        return digest in self._ahead

    def _load_ahead(self, name: str, digest: str) -> None:
        try:
            with self._two:
                self.load_digest(name, digest)
        except (InvalidInput, Unavailable):
            return
        finally:
            self._ahead.discard(digest)

    def _read(self, entry: AdapterFile, field: str) -> Adapter:
        self.reads += 1
        try:
            file = read_adapter(entry.path, layers_per_block=self._targets.layers_per_block)
            updates = self._targets.fit(file)
        except (Unusable, *_ODD) as error:
            reason = str(error) if isinstance(error, Unusable) else f"has odd contents: {error!r}"
            self._verdicts[entry.name] = _Verdict(entry.version, refused=reason)
            raise _unusable(entry.name, field, reason) from error
        ranks = [u.rank for part in file.updates.values() for u in part.values()]
        adapter = Adapter(
            name=entry.name,
            digest=file.digest,
            layout=file.layout,
            ranks=(min(ranks), max(ranks)),
            targets={part: len(own) for part, own in updates.items()},
            updates={p: own for p, own in updates.items() if p in self._parts},
        )
        self._verdicts[entry.name] = _Verdict(entry.version, digest=file.digest)
        self._held.put(file.digest, adapter, adapter.nbytes)
        return adapter


def _unusable(name: str, field: str, reason: str) -> InvalidInput:
    return InvalidInput(
        field, name, f"a LoRA that fits this bundle, and the file of this one {reason}"
    )
