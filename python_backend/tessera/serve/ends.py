"""Notices that processes of models have ended: at once, by a descriptor of each, and at the next
look those that ended before there was one, while the server started, say. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import selectors
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Ends:
    """The processes that a server's models have, and should have.

    Attributes:
        suspects: models of which a process has ended. Triton may have been told to unload them.
    """

    suspects: set[str] = field(default_factory=set)
    _watched: dict[int, tuple[int, str]] = field(default_factory=dict)  # pid -> (pidfd, model)
    _instances: dict[str, int] = field(default_factory=dict)  # model -> how many processes it has

    def count(self, current: Mapping[int, str]) -> None:
        """Remember how many processes each model has.

        Args:
            current: process id -> model, without those that only finish their last requests.
        """
        for model, count in Counter(current.values()).items():
            self._instances[model] = max(count, self._instances.get(model, 0))

    def complete(self, model: str, current: Mapping[int, str]) -> bool:
        """Whether a model has as many processes as it ever had."""
        return list(current.values()).count(model) >= self._instances.get(model, 0)

    def look(self, selector: selectors.BaseSelector, current: Mapping[int, str]) -> None:
        """Watch processes that are not watched yet, and suspect the models that miss some."""
        self.count(current)
        self.suspects |= {m for m in self._instances if not self.complete(m, current)}
        for pid, model in current.items():
            if pid not in self._watched:
                with contextlib.suppress(ProcessLookupError):  # missed at the next look
                    descriptor = os.pidfd_open(pid)
                    self._watched[pid] = (descriptor, model)
                    selector.register(descriptor, selectors.EVENT_READ, pid)

    def note(self, selector: selectors.BaseSelector, pid: int) -> None:
        """A watched process has ended."""
        if pid in self._watched:
            self.suspects.add(self._unwatch(selector, pid))

    def forget(self, model: str) -> None:
        """Count a model's processes anew: it will be loaded again, now or some day."""
        self.suspects.discard(model)
        self._instances.pop(model, None)

    def leave(self, selector: selectors.BaseSelector, model: str) -> list[int]:
        """Stop watching the processes of a model; returns their ids."""
        left = [pid for pid, (_, of) in self._watched.items() if of == model]
        for pid in left:
            self._unwatch(selector, pid)
        return left

    def close(self) -> None:
        """Close all descriptors: the server has ended."""
        while self._watched:
            os.close(self._watched.popitem()[1][0])

    def _unwatch(self, selector: selectors.BaseSelector, pid: int) -> str:
        descriptor, model = self._watched.pop(pid)
        selector.unregister(descriptor)
        os.close(descriptor)
        return model
