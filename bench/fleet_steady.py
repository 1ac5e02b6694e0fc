"""Clients that ask a fleet for pictures on and on, without retries, and what became of each.

For benches that do something to the fleet meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tessera.contract import JobStatus
from tessera.errors import TesseraError
from tessera_client import Client

PAUSE_S = 0.5
"""After an error, before a client asks again."""


@dataclass(frozen=True)
class Sent:
    """A request that has ended.

    Attributes:
        began, ended: seconds on the monotonic clock.
        error: name of the exception; empty for a picture.
        sentence: what it says.
        begun: whether a status had said that it was being denoised.
        worker: that has drawn it.
    """

    began: float
    ended: float
    error: str = ""
    sentence: str = ""
    begun: bool = False
    worker: str = ""


@dataclass
class Steady:
    """What the clients have seen.

    Attributes:
        urls: where they ask, in turns.
        steps: of each picture.
        sent: what has ended, in order.
    """

    urls: Sequence[str]
    steps: int
    sent: list[Sent] = field(default_factory=list)
    _stops: list[threading.Event] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def clients(self, count: int) -> None:
        """So many clients from now on. The others end after the picture that they wait for."""
        while len(self._stops) > count:
            self._stops.pop().set()
        while len(self._stops) < count:
            stop = threading.Event()
            url = self.urls[len(self._stops) % len(self.urls)]
            thread = threading.Thread(target=self._ask, args=(url, stop), daemon=True)
            self._stops.append(stop)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End all, after their pictures."""
        self.clients(0)
        for thread in self._threads:
            thread.join()

    def _ask(self, url: str, stop: threading.Event) -> None:
        with Client(url, timeout=300, retries=0) as client:
            while not stop.is_set():
                sent = self._one(client)
                self.sent.append(sent)
                if sent.error:
                    stop.wait(PAUSE_S)

    def _one(self, client: Client) -> Sent:
        phases: set[str] = set()

        def note(status: JobStatus) -> None:
            phases.add(status.phase)

        began = time.monotonic()
        try:
            drawn = client.generate("a circle", steps=self.steps, on_progress=note)
        except TesseraError as error:
            begun = not phases <= {"queued"}
            return Sent(began, time.monotonic(), type(error).__name__, str(error), begun)
        return Sent(began, time.monotonic(), begun=True, worker=drawn.info.worker)


@contextlib.contextmanager
def steady(urls: Sequence[str], count: int, *, steps: int) -> Iterator[Steady]:
    """So many clients, until the end of the block."""
    traffic = Steady(urls, steps)
    traffic.clients(count)
    try:
        yield traffic
    finally:
        traffic.close()


def counted(sent: Iterable[Sent]) -> dict[str, object]:
    """Pictures, and lost requests by whether they had begun and by their exceptions."""
    every = list(sent)
    lost = [each for each in every if each.error]
    return {
        "drawn": len(every) - len(lost),
        "lost_begun": sum(each.begun for each in lost),
        "lost_not_begun": sum(not each.begun for each in lost),
        "errors": dict(Counter(each.error for each in lost)),
        "sentences": sorted({each.sentence for each in lost})[:5],
    }
