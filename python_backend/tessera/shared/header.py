"""The head of the board: what holds of the server as a whole. Knows arrays, nothing of files."""

from __future__ import annotations

import numpy as np

from tessera.contract.limits import PRIORITIES
from tessera.errors import Unavailable
from tessera.shared.metrics import Kind, Outcome
from tessera.shared.rows import Rows

CACHE_FIELDS = ("hits", "misses", "evictions", "bytes", "entries")
"""Counters of the recorded activations in `denoise`'s memory."""

HEADER = np.dtype(
    [(name, "i8") for name in ("ticket", "tick", "stopping", "slots", "most_slots")]
    + [(name, "f8") for name in ("step_s", "decode_s")]
    + [(name, "i8") for name in CACHE_FIELDS]
    + [("taken", "i8", (PRIORITIES + 1,)), ("saved", "i8"), ("saved_told", "i8")]
    + [(name, "i8", (len(Kind), len(Outcome))) for name in ("ended", "told")]
    + [("awaited", "S128"), ("previewing", "i8"), ("previewed", "f8")]
)
"""`taken` has by priority the latest ticket that `render` has taken out of its queue. `ended` has
the requests that ended, by kind and outcome, and `saved` the steps that cancelled ones did not run.
`told` and `saved_told` are those of them that the metrics have. `awaited` is the ControlNet for
which `denoise` waits. `previewing` is the process of `decode` while it is at a preview, which has
no row, and else 0; `previewed` is when the latest one ended."""


class Header:
    """The head of one server's board; `_header` is its memory, which a subclass sets."""

    _header: Rows

    @property
    def tick(self) -> int:
        """Number of the latest tick that `denoise` began."""
        return int(self._header["tick"])

    def begin_tick(self) -> int:
        """Count a tick and return its number. Only `denoise` calls it."""
        self._header["tick"] += 1
        return self.tick

    @property
    def awaited(self) -> str:
        """The ControlNet for whose answer `denoise` waits; empty if it does not."""
        name: bytes = self._header["awaited"].item()
        return name.decode()

    def tell_awaited(self, name: str) -> None:
        """Publish `awaited`. Only `denoise` calls it."""
        self._header["awaited"] = name.encode()

    @property
    def cache(self) -> dict[str, int]:
        """The latest `CACHE_FIELDS` that `denoise` published."""
        return {name: int(self._header[name]) for name in CACHE_FIELDS}

    def tell_cache(self, **counters: int) -> None:
        """Publish `CACHE_FIELDS`. Only `denoise` calls it."""
        for name in CACHE_FIELDS:
            self._header[name] = counters[name]

    def tell_slots(self, slots: int, most: int = 0) -> None:
        """Publish how many jobs are denoised at a time, and how many could be if the operator said
        so: `render` has more processes than that. Only `denoise` calls it.
        """
        self._header["slots"] = slots
        self._header["most_slots"] = most or slots

    def refuse(self) -> None:
        """Take no more jobs: the server is being stopped."""
        self._header["stopping"] = 1

    @property
    def refusals(self) -> int:
        """About how many jobs have been refused since; several processes count without a lock."""
        return max(0, int(self._header["stopping"]) - 1)

    def check_serving(self) -> None:
        """See whether jobs are taken.

        Raises:
            Unavailable: the server is being stopped.
        """
        if self._header["stopping"]:
            self._header["stopping"] += 1
            raise Unavailable("the server is being stopped; try again later")

    @property
    def step_ms(self) -> float:
        """Time of a job's step together with others', a moving average of the latest job's."""
        return 1e3 * float(self._header["step_s"])

    @property
    def decode_ms(self) -> float:
        """Time from a job's last step to its picture, a moving average."""
        return 1e3 * float(self._header["decode_s"])
