"""Sides of a benchmark in turns: the servers of all are up, and one at a time gets a trace.

Who begins changes from round to round. Before each turn every server has to be quiet: recordings
that edits have asked for are made in quiet moments, and would be made in another side's turn.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import psutil

from bench import trace
from bench.replay import Outcome, percentiles, replay, summary
from bench.server import Server
from bench.trace import Asked
from tessera.contract import Info

T = TypeVar("T")
Send = Callable[[Asked], Info | None]
QUIET_S = 8.0
"""A server that has been quiet for so long has nothing left to record: what was wanted once is
recorded when it has been idle for five seconds, and the next one a second after that."""
_LOOK_S = 2.0
_QUIET_CORES = 0.2
"""What an idle server may use. One that records uses more than a core."""
_QUIET_WITHIN_S = 90.0


@dataclass(frozen=True)
class Up:
    """A side whose server is up, and how that is asked."""

    server: Server
    send: Send


@dataclass
class Quiet:
    """Waits until servers are quiet.

    Attributes:
        servers: by their sides' names.
        cores: what each used in the last look before each turn.
        given_up: how often one was not quiet in time.
    """

    servers: Mapping[str, Server]
    cores: dict[str, list[float]] = field(default_factory=dict)
    given_up: int = 0

    def wait(self) -> None:
        """Return when all have been quiet for `QUIET_S`, or after a minute and a half."""
        since = time.monotonic()
        end = since + _QUIET_WITHIN_S
        while True:
            found, now = self._look(), time.monotonic()
            if max(found.values()) > _QUIET_CORES:
                since = now
            quiet = now - since >= QUIET_S
            if quiet or now > end:
                break
        self.given_up += not quiet
        for name, cores in found.items():
            self.cores.setdefault(name, []).append(round(cores, 3))

    def _look(self) -> dict[str, float]:
        before = {name: cpu_seconds(server) for name, server in self.servers.items()}
        began = time.monotonic()
        time.sleep(_LOOK_S)
        took = time.monotonic() - began
        return {
            name: (cpu_seconds(server) - before[name]) / took
            for name, server in self.servers.items()
        }


def cpu_seconds(server: Server) -> float:
    """What all of its processes have used. One that ends meanwhile is left out."""
    root, total = psutil.Process(server.process.pid), 0.0
    for each in [root, *root.children(recursive=True)]:
        try:
            used = each.cpu_times()
            total += used.user + used.system
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def in_turn(sides: Sequence[T], number: int) -> list[T]:
    """The sides in a round's order."""
    first = number % len(sides)
    return [*sides[first:], *sides[:first]]


def at_once(requests: Sequence[Asked]) -> list[Asked]:
    """The same, all sent at the beginning."""
    return [dataclasses.replace(asked, at=0.0) for asked in requests]


def capacity(requests: Sequence[Asked], send: Send) -> float:
    """Pictures a second if all requests are there at once. They are sent twice, since first uses of
    LoRAs and sizes of batches are in the first.
    """
    replay(trace.again(at_once(requests), 1), send)
    found = summary(replay(trace.again(at_once(requests), 2), send), deadline=0.0)
    rate: float = found["pictures_per_s"]
    return rate


def capacities(
    requests: Sequence[Asked], sides: Mapping[str, Up], quiet: Quiet
) -> dict[str, float]:
    """`capacity` of each side."""
    found = {}
    for name, side in sides.items():
        quiet.wait()
        found[name] = capacity(requests, side.send)
    return found


def replayed(
    requests: Sequence[Asked],
    rates: Mapping[str, float],
    sides: Mapping[str, Up],
    quiet: Quiet,
    number: int,
) -> dict[str, list[Outcome]]:
    """One round: each side's outcomes of the trace.

    Args:
        requests: the trace.
        rates: requests a second that each side gets.
        sides: by name.
        quiet: of their servers.
        number: of the round, which says who begins.
    """
    found = {}
    for name in in_turn(list(sides), number):
        quiet.wait()
        found[name] = replay(trace.at_rate(requests, rates[name]), sides[name].send)
    return found


def figures(rounds: Sequence[Sequence[Outcome]], deadline: float) -> dict[str, Any]:
    """`replay.summary` of all rounds' requests, with medians of the rounds' speeds."""
    each = [summary(found, deadline) for found in rounds]
    speeds = {
        name: round(statistics.median(of[name] for of in each), 4)
        for name in ("good_per_s", "pictures_per_s")
    }
    return summary(list(chain(*rounds)), deadline) | speeds | {"p95_of_rounds": p95s(rounds)}


def p95s(rounds: Sequence[Sequence[Outcome]]) -> list[float | None]:
    """p95 of each round."""
    return [percentiles(latencies(found)).get("p95") for found in rounds]


def latencies(outcomes: Sequence[Outcome]) -> list[float]:
    """Seconds of those that have a picture."""
    return [outcome.latency_s for outcome in outcomes if not outcome.error]


def kind_of(asked: Asked) -> str:
    """`plain`, `LoRA`, `ControlNet`, `LoRA and ControlNet` or `edit`."""
    if asked.template is not None:
        return "edit"
    parts = [name for name, of in (("LoRA", asked.loras), ("ControlNet", asked.controls)) if of]
    return " and ".join(parts) or "plain"


def kinds(rounds: Sequence[Sequence[Outcome]]) -> dict[str, dict[str, Any]]:
    """Latencies of each kind of request, of all rounds and p95 of each."""
    found: dict[str, dict[str, Any]] = {}
    for kind in sorted({kind_of(o.asked) for o in chain(*rounds)}):
        of_kind = [[o for o in outcomes if kind_of(o.asked) == kind] for outcomes in rounds]
        every = latencies(list(chain(*of_kind)))
        more = {"requests": sum(map(len, of_kind)), "p95_of_rounds": p95s(of_kind)}
        found[kind] = percentiles(every) | more
    return found


def edits(rounds: Sequence[Sequence[Outcome]]) -> dict[str, Any] | None:
    """Edits whose servers have INFO: share of their steps that were sparse, and how many of them
    used a recording of which prompt. `None` without any.
    """
    infos = [o.info for o in chain(*rounds) if o.info and o.asked.template is not None]
    ticks = sum(info.ticks for info in infos)
    if not ticks:
        return None
    return {
        "sparse_steps": round(sum(info.sparse_ticks for info in infos) / ticks, 4),
        "recordings": dict(Counter(str(info.recording or "none") for info in infos)),
    }
