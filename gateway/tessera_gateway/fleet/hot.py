"""Which templates are worth a copy on one more worker.

An edit that waits where its template is recorded, although another worker would be done earlier if
it had the recording, loses the difference. Once the edits of a template have lost as much as a
recording costs, it is recorded there, too. So at no time has waiting cost much more than the copy
that would have spared it: the rule of "rent or buy" (Karlin et al., Algorithmica 3, 1988).
"""

from __future__ import annotations

from collections import OrderedDict, deque

from tessera_gateway.fleet import expected
from tessera_gateway.fleet.book import Book, Choice
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.score import key_of, record_ms

FELT_S = 60.0
"""For so long, what an edit has lost counts."""

_TEMPLATES = 1000
"""Recordings whose losses are remembered."""

_Key = tuple[str, str, int]


class Heat:
    """What edits have lost lately, by recording."""

    def __init__(self) -> None:
        self._lost: OrderedDict[_Key, deque[tuple[float, float]]] = OrderedDict()

    def felt(self, book: Book, peek: Peek, choice: Choice, now: float) -> str | None:
        """Note an edit.

        Args:
            book: of the router that has chosen.
            peek: the edit; other requests lose nothing.
            choice: its worker.
            now: the time.

        Returns:
            The worker that should get a copy, if one is worth it.
        """
        predicted = choice.prediction
        waits = predicted.total - predicted.alone - book.workers[choice.worker].load.decode_ms
        waits -= sum(predicted.missing.values())  # no copy spares these: it has to be read, too
        if not peek.template or peek.mask is None or waits <= 0:
            return None
        others = book.with_recording(peek, now, avoid=[choice.worker])
        best = min(others, key=lambda name: (others[name].total, name), default=None)
        if best is None or others[best].total >= predicted.total:
            return None
        load = book.workers[best].load
        latest = self._of(key_of(load, peek))
        latest.append((now, min(waits, predicted.total - others[best].total)))
        while now - latest[0][0] > FELT_S:
            latest.popleft()
        costs = expected.texts(load, peek) * record_ms(load, peek)
        if sum(lost for _, lost in latest) < costs:
            return None
        latest.clear()
        return best

    def _of(self, key: _Key) -> deque[tuple[float, float]]:
        found = self._lost.setdefault(key, deque())
        self._lost.move_to_end(key)
        if len(self._lost) > _TEMPLATES:
            self._lost.popitem(last=False)
        return found
