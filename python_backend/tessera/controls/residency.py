"""Which ControlNets are loaded: on first use, within a byte budget, evicted least recently used.

Every process that denoises requests has its own `Residency`. They share a small file under a lock.
A request takes all its ControlNets at once, or holds none while it waits. So two requests cannot
wait for each other. While a ControlNet is loading, only requests that need it wait.

Standard library only. Models are loaded and unloaded through the protocol `Models`.
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

from tessera.errors import InvalidInput, TesseraError, listing
from tessera.shared.own_files import open_own, read_own
from tessera.shared.processes import identity, lives

POLL_S = 0.01
IMPATIENT_S = 10.0
"""A request that has waited for memory this long is served before all later ones."""
_HALF = 1 << 17
"""Bytes for one copy of the table: enough for 800 ControlNets."""


class Models(Protocol):
    """Loads and unloads the server's ControlNets. Each method may raise a `TesseraError`."""

    def load(self, name: str) -> None:
        """Load a ControlNet; returns when it can be called."""
        ...

    def unload(self, name: str) -> None:
        """Unload a ControlNet; returns when its memory is free."""
        ...

    def is_ready(self, name: str) -> bool:
        """Whether a ControlNet is loaded."""
        ...


@dataclass
class Resident:
    """A ControlNet that takes memory.

    Attributes:
        used: Unix time at which it was last taken or given back.
        holders: processes (`processes.identity`) that use it, and how many times each.
        mover: the process that is loading or unloading it; empty if it is ready.
    """

    used: float
    holders: dict[str, int] = field(default_factory=dict)
    mover: str = ""


@dataclass
class _Table:
    residents: dict[str, Resident] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)  # process -> waits for memory since

    def forget_dead(self) -> None:
        """Remove processes that have ended.

        A ControlNet that one of them was loading stays in the table, since the server completes the
        load.
        """
        for resident in self.residents.values():
            resident.holders = {p: n for p, n in resident.holders.items() if lives(p)}
            resident.mover = resident.mover if lives(resident.mover) else ""
        self.waiting = {p: since for p, since in self.waiting.items() if lives(p)}


def loaded(path: Path) -> list[str]:
    """Names of the ControlNets that are loaded, sorted, from the shared file, without its lock.

    A write changes the half that is not valid, and then the byte that says which one is. So what is
    read here is whole unless two writes came in between; then the answer is none.
    """
    try:
        content = read_own(path)
        start = 1 + content[0] * _HALF
        table = json.loads(content[start : content.index(b"\0", start)] or b"{}")
    except (OSError, TesseraError, ValueError, IndexError):
        return []
    return sorted(name for name, r in table.get("residents", {}).items() if not r["mover"])


class Residency:
    """Takes ControlNets for requests and gives them back.

    Args:
        path: the shared file.
        sizes: bytes of every ControlNet of the bundle, by name.
        budget: bytes that loaded ControlNets may take together.
        pinned: names of ControlNets that are loaded at startup and never evicted.
        models: loads and unloads the server's ControlNets.
        patience: seconds after which a request that waits for memory goes before later ones.
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
        self._process = identity(os.getpid())

    def take(self, controlnets: Iterable[str], give_up: Callable[[], None] = lambda: None) -> float:
        """Wait until ControlNets are loaded, and keep them loaded until `give_back`.

        Args:
            controlnets: names of the ControlNets.
            give_up: called while waiting. An exception that it raises ends the wait.

        Returns:
            Milliseconds that it took.

        Raises:
            InvalidInput: they do not fit the budget, even without others.
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
                table.waiting.pop(self._process, None)
        return 1e3 * (time.monotonic() - began)

    def give_back(self, names: Iterable[str]) -> None:
        """Release ControlNets that `take` took."""
        with self._table() as table:
            for name in sorted(set(names)):
                resident = table.residents.get(name)
                if resident is None:
                    continue
                resident.used = time.monotonic()
                left = resident.holders.get(self._process, 0) - 1
                if left > 0:
                    resident.holders[self._process] = left
                else:
                    resident.holders.pop(self._process, None)

    def _check(self, names: frozenset[str]) -> None:
        if self._room(names) > self._budget:
            pinned = f" in addition to the pinned {listing(self._pinned)}" if self._pinned else ""
            accepted = f"ControlNets of at most {self._budget / 1e9:g} GB together{pinned}"
            raise InvalidInput.described("CONTROLS", f"names {listing(names)}", accepted)

    def _room(self, names: Iterable[str]) -> int:
        """Bytes of these and all pinned ControlNets."""
        return sum(self._sizes[name] for name in self._pinned.union(names))

    def _try(self, names: frozenset[str]) -> bool:
        """Try once to take ControlNets; False if this process has to wait for others."""
        with self._table() as table:
            residents = table.residents
            missing = sorted(name for name in names if name not in residents)
            # All or nothing: otherwise two requests could each hold one ControlNet and wait for the
            # other's.
            if any(residents[name].mover for name in names.difference(missing)):
                return False
            leaving = self._leaving(table, names, missing)
            if leaving is None:
                table.waiting.setdefault(self._process, time.monotonic())
                return False
            table.waiting.pop(self._process, None)
            # Memory is reassigned here, under the lock. Loading takes seconds and runs outside the
            # lock, so that requests for other ControlNets can proceed.
            for name in (*leaving, *missing):
                residents[name] = Resident(time.monotonic(), mover=self._process)
            for name in names.difference(missing):
                self._hold(residents[name])
        try:
            self._move(leaving, missing)
            return self._reload_gone(names)
        except Exception:
            self.give_back(names)
            raise

    def _hold(self, resident: Resident) -> None:
        resident.used = time.monotonic()
        resident.holders[self._process] = resident.holders.get(self._process, 0) + 1

    def _leaving(
        self, table: _Table, names: frozenset[str], missing: list[str]
    ) -> list[str] | None:
        """ControlNets to unload so that `missing` can be loaded.

        Returns:
            `None` if that does not free enough memory yet, or if it is another process's turn.
        """
        if names <= self._pinned:
            return []  # memory of pinned ControlNets is never reassigned
        if not self._on_turn(table):
            return None
        residents = table.residents
        # Pinned ones count even while they are not loaded: their memory is reserved. ControlNets
        # that others hold or move cannot leave, so it may take several tries until enough are idle.
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
        """Whether no process has waited beyond `patience` that began to wait before this one."""
        began = table.waiting.get(self._process, time.monotonic())
        late = [
            since for since in table.waiting.values() if time.monotonic() - since > self._patience
        ]
        return all(since >= began for since in late)

    def _move(self, leaving: list[str], missing: list[str]) -> None:
        """Unload and load outside the lock, and hold what was loaded."""
        moving = [*leaving, *missing]
        try:
            for name in leaving:
                self._models.unload(name)
                self._moved(moving.pop(0), stays=False)
            for name in missing:
                if not self._models.is_ready(name):  # pinned, or loaded by an operator
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
            resident = table.residents.setdefault(name, Resident(time.monotonic()))
            resident.mover = ""
            self._hold(resident)

    def _reload_gone(self, names: frozenset[str]) -> bool:
        """Load ControlNets that the table lists as loaded but that are not.

        Their process has ended, or an operator has unloaded them. Other holders keep holding them.

        Returns:
            False if another process is loading one of them. Then this process holds none of them.
        """
        for name in sorted(names):
            if self._models.is_ready(name):
                continue
            with self._table() as table:
                resident = table.residents.get(name)
                if resident is None or resident.mover:
                    break
                resident.mover = self._process
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
        """The shared table, under the lock. Changes are written back, all or nothing.

        The file begins with a byte that says which of its two halves is valid. A write goes to the
        other half. The file's space is allocated when it is created, so that no later write can
        fail.
        """
        descriptor = open_own(self._path, os.O_RDWR | os.O_CREAT)
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
