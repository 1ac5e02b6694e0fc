"""The workers of a fleet: connections, what each tells, and where a request goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import msgspec

from tessera_gateway.fleet import wire
from tessera_gateway.fleet.book import Book, Choice, NoWorker
from tessera_gateway.fleet.learning import LEARNED, PATHS, Drawn
from tessera_gateway.fleet.load import read_load
from tessera_gateway.fleet.metrics import FleetMetrics, State
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.scaling import Hold
from tessera_gateway.fleet.settings import Server
from tessera_gateway.kserve.limits import Refused
from tessera_gateway.kserve.upstream import Upstream

log = logging.getLogger("tessera_gateway")
T = TypeVar("T")

SERVICE = "inference.GRPCInferenceService"
GONE = "the worker ended the connection"
TELLS_EVERY_S = 0.2
TELLS_WITHIN_S = 2.0
CLOSES_WITHIN_S = 5.0
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_RECONNECTS = [("grpc.max_reconnect_backoff_ms", 2000), ("grpc.min_reconnect_backoff_ms", 5000)]
"""The first is the longest pause, else 120 s; the second is for how long one attempt may take."""
_LOAD = wire.request_of("jobs", {"ACTION": "load"})


@dataclass(frozen=True)
class Seen:
    """What a router sees of an answer.

    Attributes:
        fine: whether it is no error.
        drawn: what INFO says.
    """

    fine: bool = True
    drawn: Drawn | None = None


class Lost(Exception):
    """A worker did not answer, or would not take the request.

    Attributes:
        answer: what to tell the caller if no other worker can take it.
        gone: whether the worker could not be reached.
    """

    def __init__(self, answer: Exception, *, gone: bool) -> None:
        super().__init__(str(answer))
        self.answer = answer
        self.gone = gone


@dataclass
class Member:
    """One worker's connections."""

    server: Server
    upstream: Upstream = field(init=False)
    _channel: Any = field(init=False)
    _methods: dict[str, Any] = field(default_factory=dict)
    _closing: bool = False

    def __post_init__(self) -> None:
        self.upstream = Upstream(f"http://{self.server.http}")
        self._channel = grpc.aio.insecure_channel(self.server.grpc, [*UNLIMITED, *_RECONNECTS])

    async def call(self, method: str, data: bytes, timeout: float | None = None) -> bytes:
        """Call a method of Triton's gRPC service with bytes.

        Raises:
            grpc.aio.AioRpcError: it fails, or `close` ends it.
        """
        known = self._methods.get(method) or self._channel.unary_unary(f"/{SERVICE}/{method}")
        self._methods[method] = known
        try:
            answer: bytes = await known(data, timeout=timeout)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closing or task is None or task.cancelling():  # by the caller
                raise
            none = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, none, none, GONE) from None
        return answer

    async def infer(self, request: bytes, timeout: float | None = None) -> bytes:
        """Call ModelInfer.

        Raises:
            Lost: the worker is gone, or does not take the request.
            grpc.aio.AioRpcError: it answers with another error.
        """
        try:
            return await self.call("ModelInfer", request, timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            gone = not self.connected  # then the error tells of sockets
            raise Lost(Refused(503, GONE) if gone else error, gone=gone) from None

    @property
    def connected(self) -> bool:
        """Whether there is a connection for gRPC; a worker that refuses keeps it."""
        return bool(self._channel.get_state() == grpc.ChannelConnectivity.READY)

    async def close(self) -> None:
        """Close the connections; calls under way get some time."""
        self._closing = True
        await self._channel.close(grace=CLOSES_WITHIN_S)
        await self.upstream.close()


class Pool:
    """The workers.

    Args:
        book: this router's.
        hold: requests that wait for a worker while there is none.

    Attributes:
        held: requests that wait for a worker now.
        tried: requests that were sent to a second worker.
        errors: of the latest pictures, how many times as long as predicted they took.
        metrics: of this front.
        watch: hears of every choice of a worker.
        copying: templates that are being copied to another worker.
    """

    def __init__(self, book: Book, hold: Hold | None = None) -> None:
        self.book = book
        self.hold = hold or Hold()
        self.held = 0
        self.metrics = FleetMetrics(self.state)
        self.watch: Callable[[Peek, Choice], None] = lambda *_: None
        self.copying: dict[str, asyncio.Task[None]] = {}
        self._word = asyncio.Event()
        self.members: dict[str, Member] = {}
        self.tried = 0
        self.errors: deque[float] = deque(maxlen=1000)
        self._tellers: dict[str, asyncio.Task[None]] = {}
        self._closing: deque[asyncio.Task[None]] = deque(maxlen=1000)

    def have(self, servers: Iterable[Server]) -> None:
        """These are the workers now. Needs a running loop."""
        wanted = {server.grpc: server for server in servers}
        for name in self.members.keys() - wanted.keys():
            self._tellers.pop(name).cancel()
            self.book.forget(name)
            self.metrics.forget(name)
            self._closing.append(asyncio.ensure_future(self.members.pop(name).close()))
            log.info("worker %s has left the fleet", name)
        for name in wanted.keys() - self.members.keys():
            self.members[name] = Member(wanted[name])
            self._tellers[name] = asyncio.ensure_future(self._listen(name))

    async def close(self) -> None:
        """Close all connections."""
        for task in self._tellers.values():
            task.cancel()
        for task in self.copying.values():
            task.cancel()
        for member in self.members.values():
            await member.close()
        self.members.clear()

    async def route(
        self,
        peek: Peek,
        send: Callable[[Member], Awaitable[T]],
        see: Callable[[T], Seen] = lambda _: Seen(),
    ) -> T:
        """Send a request to the worker where it will be done first.

        One that did not begin there, since the worker is gone or refuses, is sent to another one,
        once.

        Args:
            peek: the request.
            send: sends it; raises `Lost` if there is no answer.
            see: what an answer tells.

        Raises:
            Lost: see there.
            NoWorker: there is none.
        """
        choice = await self._held(lambda: self.book.choose(peek, time.monotonic()))
        entry = self.book.workers[choice.worker]  # it may leave the book
        try:
            return await self.send_to(choice, peek, send, see)
        except Lost as lost:
            if any(running.job == peek.job for running in entry.load.running):
                raise
            try:
                other = self.book.choose(peek, time.monotonic(), avoid=[choice.worker])
            except NoWorker:
                raise lost from None
            self.tried += 1
            self.metrics.again()
            return await self.send_to(other, peek, send, see)

    async def first(self, *, wait: bool = True) -> Member:
        """A worker for questions that all answer alike: the same one as long as it lives.

        Args:
            wait: for a worker, while there is none.

        Raises:
            NoWorker: there is none.
        """
        return await self._held(self.first_now) if wait else self.first_now()

    def first_now(self) -> Member:
        """See `first`, without waiting.

        Raises:
            NoWorker: there is none.
        """
        now = time.monotonic()
        found = self.book.open(now) or self.book.live(now) or self.book.reached(now)
        if not found:
            raise NoWorker("no worker of the fleet is ready")
        return self.members[found[0]]

    async def _held(self, find: Callable[[], T]) -> T:
        """What is found once there is a worker.

        Raises:
            NoWorker: there is none in time, or too many wait already.
        """
        try:
            return find()
        except NoWorker:
            if not self.hold.requests:
                raise
        if self.held >= self.hold.requests:
            raise NoWorker(
                f"no worker of the fleet is ready, and {self.held} requests wait for one already"
            )
        self.held += 1
        try:
            async with asyncio.timeout(self.hold.seconds):
                while True:
                    await self._word.wait()
                    with contextlib.suppress(NoWorker):
                        return find()
        except TimeoutError:
            sentence = f"no worker of the fleet has become ready in {self.hold.seconds:g} s"
            raise NoWorker(sentence) from None
        finally:
            self.held -= 1

    def live(self) -> list[Member]:
        """All that can be asked."""
        return [self.members[name] for name in self.book.reached(time.monotonic())]

    def of(self, job: str) -> Member | None:
        """The worker that a job was sent to."""
        return self.members.get(self.book.worker_of(job) or "")

    async def send_to(
        self,
        choice: Choice,
        peek: Peek,
        send: Callable[[Member], Awaitable[T]],
        see: Callable[[T], Seen] = lambda _: Seen(),
    ) -> T:
        """Send a request to the worker that was chosen, and note how that ends. See `route`."""
        self.watch(peek, choice)
        self.metrics.chosen(peek, choice)
        outcome = "refused"
        try:
            answer = await send(self.members[choice.worker])
            seen = see(answer)
            if seen.fine:
                outcome = "done"
            if seen.drawn and choice.prediction.total:
                ratio = self.book.drew(choice, seen.drawn, time.monotonic())
                self.errors.append(ratio)
                self.metrics.took(choice.prediction.path, ratio)
            return answer
        except Lost as lost:
            outcome = "lost" if lost.gone else "unavailable"
            if lost.gone:
                self.book.fail(choice.worker)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.book.end(choice, time.monotonic(), fine=outcome == "done")
            self.metrics.ended(choice.worker, outcome)

    def state(self) -> State:
        """Of the fleet now, for its metrics."""
        now = time.monotonic()
        reached, open_ = len(self.book.live(now)), len(self.book.open(now))
        states = {
            "live": open_,
            "draining": reached - open_,
            "unreachable": len(self.members) - reached,
        }
        scales = {
            (name, path): self.book.scales.of(name, path) for name in self.members for path in PATHS
        }
        weights = {name: getattr(self.book.weights, name) for name in LEARNED}
        return State(states, self.held, self.book.seconds(now), scales, weights)

    async def _listen(self, name: str) -> None:
        """Ask a worker for its load, again and again."""
        while True:
            try:
                await self.ask(name)
            except (grpc.aio.AioRpcError, wire.Malformed, msgspec.MsgspecError) as error:
                told = error if isinstance(error, grpc.aio.AioRpcError) else None
                if name in self.book.live(time.monotonic()):
                    log.warning(
                        "worker %s tells nothing: %s", name, told.details() if told else error
                    )
                if told is None or told.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                    self.book.fail(name)
            await asyncio.sleep(TELLS_EVERY_S)

    async def ask(self, name: str) -> None:
        """Ask a worker for its load, and note it.

        Raises:
            grpc.aio.AioRpcError: it does not answer.
            wire.Malformed, msgspec.MsgspecError: it answers something else.
        """
        answer = await self.members[name].call("ModelInfer", _LOAD, TELLS_WITHIN_S)
        load = read_load(wire.first_text(answer))
        if name in self.members:  # it may have left meanwhile
            self.book.tell(name, load, time.monotonic())
            self._word.set()  # wakes all that wait
            self._word = asyncio.Event()
