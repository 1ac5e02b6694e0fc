"""Which ControlNets are loaded: on first use, within a byte budget, the longest unused goes first.

Every process that denoises requests has its own `Residency`; they share a small file under a lock.
A request takes all its ControlNets at once or waits holding none, so that two requests cannot wait
for each other. While a ControlNet is being loaded only requests that need it wait. Standard library
only; who loads and unloads models is given as callables.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from tessera.errors import InvalidInput, listing
from tessera.shared.processes import identity, lives

POLL_S = 0.01
IMPATIENT_S = 10.0
"""A request that has waited for room this long is served before later ones, whatever they need."""
_HALF = 1 << 17
"""Bytes that one state of the table may have: enough for 800 ControlNets."""


class Models(Protocol):
    """The server's models, as far as residency needs them; each method raises a `TesseraError`."""

    def load(self, name: str) -> None:
        """Load one that is not; returns when it can be called."""
        ...

    def unload(self, name: str) -> None:
        """Its memory is free when this returns."""
        ...

    def is_ready(self, name: str) -> bool:
        """Whether it is loaded."""
        ...


@dataclass
class Resident:
    """A ControlNet that takes room.

    Attributes:
        used: when it was last taken or given back.
        holders: processes (`processes.identity`) that use it, and how often.
        mover: the process that loads or unloads it; empty if it is ready.
    """

    used: float
    holders: dict[str, int] = field(default_factory=dict)
    mover: str = ""


@dataclass
class _Table:
    residents: dict[str, Resident] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)  # process -> since when for room

    def forget_dead(self) -> None:
        """Drop what processes that have ended held. What one of them was loading takes room all the
        same, since the server goes on with it.
        """
        for resident in self.residents.values():
            resident.holders = {p: n for p, n in resident.holders.items() if lives(p)}
            resident.mover = resident.mover if lives(resident.mover) else ""
        self.waiting = {p: since for p, since in self.waiting.items() if lives(p)}


class Residency:
    """Takes ControlNets for requests and gives them back.

    Args:
        path: of the shared file.
        sizes: bytes of every ControlNet of the bundle.
        budget: bytes that loaded ones may take together.
        pinned: those that are loaded from the beginning and stay.
        models: of the server.
        patience: seconds after which a request for room goes before later ones.
    """

    def __init__(
        self,
        path: Path,
        sizes: Mapping[str, int],
        *,
        budget: int,
        pinned: Iterable[str],
        models: Models,
        patience: float = IMPATIENT_S,
    ) -> None:
        self._path = path
        self._sizes = sizes
        self._budget = budget
        self._patience = patience
        self._pinned = frozenset(pinned)
        self._models = models
        self._own = identity(os.getpid())

    def take(self, controlnets: Iterable[str], give_up: Callable[[], None] = lambda: None) -> float:
        """Wait until these are loaded and keep them so until `give_back`.

        Args:
            controlnets: their names.
            give_up: called while waiting; an exception of it ends the wait.

        Returns:
            milliseconds that it took.

        Raises:
            InvalidInput: they do not fit into the budget, even alone.
            Unavailable: one could not be loaded.
        """
        names = frozenset(controlnets)
        self._check(names)
        began = time.monotonic()
        try:
            while not self._try(names):
                give_up()
                time.sleep(POLL_S)
        finally:
            with self._table() as table:
                table.waiting.pop(self._own, None)
        return 1e3 * (time.monotonic() - began)

    def give_back(self, names: Iterable[str]) -> None:
        """The end of what `take` began."""
        with self._table() as table:
            for name in sorted(set(names)):
                resident = table.residents.get(name)
                if resident is None:
                    continue
                resident.used = time.time()
                left = resident.holders.get(self._own, 0) - 1
                if left > 0:
                    resident.holders[self._own] = left
                else:
                    resident.holders.pop(self._own, None)

    def _check(self, names: frozenset[str]) -> None:
        if self._room(names) > self._budget:
            pinned = f" beside the pinned {listing(self._pinned)}" if self._pinned else ""
            accepted = f"ControlNets of at most {self._budget / 1e9:g} GB together{pinned}"
            raise InvalidInput.described("CONTROLS", f"names {listing(names)}", accepted)

    def _room(self, names: Iterable[str]) -> int:
        """Bytes of these and the pinned ones."""
        return sum(self._sizes[name] for name in self._pinned.union(names))

    def _try(self, names: frozenset[str]) -> bool:
        """One attempt: False if it has to wait for what others do."""
        with self._table() as table:
            residents = table.residents
            missing = sorted(name for name in names if name not in residents)
            # All or nothing: a request that held one ControlNet while it waited for another could
            # wait for a request that does the same the other way round.
            if any(residents[name].mover for name in names.difference(missing)):
                return False
            leaving = self._leaving(table, names, missing)
            if leaving is None:
                table.waiting.setdefault(self._own, time.time())
                return False
            table.waiting.pop(self._own, None)
            # The room is given away here, under the lock. Loading takes seconds and is done
            # outside of it, so that requests for other ControlNets go on meanwhile.
            for name in (*leaving, *missing):
                residents[name] = Resident(time.time(), mover=self._own)
            for name in names.difference(missing):
                self._hold(residents[name])
        try:
            self._move(leaving, missing)
            return self._reload_gone(names)
        except Exception:
            self.give_back(names)
            raise

    def _hold(self, resident: Resident) -> None:
        resident.used = time.time()
        resident.holders[self._own] = resident.holders.get(self._own, 0) + 1

    def _leaving(
        self, table: _Table, names: frozenset[str], missing: list[str]
    ) -> list[str] | None:
        """What has to leave so that `missing` can be loaded; `None` if that would not be enough
        yet, or if it is somebody else's turn.
        """
        if names <= self._pinned:
            return []  # their room is never given away
        if not self._on_turn(table):
            return None
        residents = table.residents
        # Pinned ones count even while they are not loaded: their room stays theirs. What others
        # hold or are moving cannot leave, so it may take several tries until enough is idle.
        excess = self._room({*residents, *missing}) - self._budget
        idle = [
            name
            for name, r in residents.items()
            if not r.holders and not r.mover and name not in names | self._pinned
        ]
        leaving: list[str] = []
        for name in sorted(idle, key=lambda name: residents[name].used) if missing else []:
            if excess > 0:
                leaving.append(name)
                excess -= self._sizes[name]
        return leaving if excess <= 0 or not missing else None

    def _on_turn(self, table: _Table) -> bool:
        """Whether nobody who waits for room has lost patience before this process began to wait."""
        own = table.waiting.get(self._own, time.time())
        late = [since for since in table.waiting.values() if time.time() - since > self._patience]
        return all(since >= own for since in late)

    def _move(self, leaving: list[str], missing: list[str]) -> None:
        """Unload and load, outside the lock; what has been loaded is held."""
        moving = [*leaving, *missing]
        try:
            for name in leaving:
                self._models.unload(name)
                self._moved(moving.pop(0), stays=False)
            for name in missing:
                if not self._models.is_ready(name):  # it may be pinned, or an operator's
                    self._models.load(name)
                self._moved(moving.pop(0), stays=True)
        except Exception:
            for name in moving:
                self._moved(name, stays=False)
            raise

    def _moved(self, name: str, *, stays: bool) -> None:
        with self._table() as table:
            if not stays:
                table.residents.pop(name, None)
                return
            resident = table.residents.setdefault(name, Resident(time.time()))
            resident.mover = ""
            self._hold(resident)

    def _reload_gone(self, names: frozenset[str]) -> bool:
        """Load what the table says to be loaded and is not, since its process has ended or an
        operator has unloaded it; who else holds it goes on holding it. False if somebody else is
        loading it: then nothing is held.
        """
        for name in sorted(names):
            if self._models.is_ready(name):
                continue
            with self._table() as table:
                resident = table.residents.get(name)
                if resident is None or resident.mover:
                    break
                resident.mover = self._own
            try:
                self._models.load(name)
            finally:
                with self._table() as table:
                    if name in table.residents:
                        table.residents[name].mover = ""
        else:
            return True
        self.give_back(names)
        return False

    @contextlib.contextmanager
    def _table(self) -> Iterator[_Table]:
        """The shared table, under the lock; what is done to it is written back, all or nothing.

        The file has two halves and, in front, which of them holds; the other is written. All its
        room is taken when it is made, so that no later write can fail.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_size < 1 + 2 * _HALF:
                os.posix_fallocate(descriptor, 0, 1 + 2 * _HALF)
            with mmap.mmap(descriptor, 1 + 2 * _HALF) as memory:
                start = 1 + memory[0] * _HALF
                before = memory[start : memory.find(b"\0", start)] or b"{}"
                content = json.loads(before)
                residents = {n: Resident(**r) for n, r in content.get("residents", {}).items()}
                table = _Table(residents, content.get("waiting", {}))
                table.forget_dead()
                try:
                    yield table
                finally:
                    after = json.dumps(asdict(table)).encode()
                    if after != before:
                        start = 1 + (1 - memory[0]) * _HALF
                        memory[start : start + len(after) + 1] = after + b"\0"
                        memory[0] = 1 - memory[0]
