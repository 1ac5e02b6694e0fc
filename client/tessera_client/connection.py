"""What `Client` does for every call: it asks, tries again, cancels jobs, and tells the news."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from tessera.errors import InvalidInput, TesseraError, TimedOut, Unavailable, UnknownJob
from tessera.types import Array
from tessera_client.address import address_of
from tessera_client.checks import integer_of, seconds_of
from tessera_client.messages import job_call
from tessera_client.previews import News
from tessera_client.transport import Transport, connect
from tessera_client.wire import Call, whole

if TYPE_CHECKING:
    from typing_extensions import Self

POLL_S = 0.1
RETRY_S = 0.5
JOB_TIMEOUT = 10.0
COMES_WITHIN_S = 2.0
"""A job that is to be cancelled may be on its way to the server, or wait there, for so long."""
MAX_RETRIES = 100
COROUTINE = "a callback returned a coroutine; accepted: a plain function, or use AsyncClient"
CLOSED = "this client is closed; open another one"


class Connection:
    """A connection to a Tessera server; usable in a `with` statement and from several threads.

    Args:
        url: `http[s]://host[:port][/prefix]` or `grpc[s]://host[:port]`.
        token: sent as `Authorization: Bearer`; left out, that of the environment's TESSERA_TOKEN;
            "" sends none.
        headers: further ones of every request.
        ca_file: certificates to trust instead of the system's, in PEM.
        timeout: seconds to wait for an answer, unless a call says otherwise.
        retries: how often a request is sent again that had no effect (no connection, or answered
            UNAVAILABLE).
        transport: what to use instead of a connection to `url`.

    Raises:
        InvalidInput: the URL is of no known form.
        TypeError, ValueError: another argument is not accepted.
        ModuleNotFoundError: gRPC is not installed, and the URL needs it.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        timeout: float = 300.0,
        retries: int = 2,
        transport: Transport | None = None,
    ) -> None:
        self._timeout = seconds_of("timeout", timeout)
        self._retries = integer_of("retries", retries, 0, MAX_RETRIES)
        address = address_of(url, token=token, headers=headers, ca_file=ca_file)
        self._transport = transport or connect(address)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Every later call raises RuntimeError."""
        self._closed = True
        self._transport.close()

    def _ask(
        self, call: Call, timeout: float | None = None, job: str | None = None
    ) -> dict[str, Array]:
        """The answer; a call that had no effect is sent again, its job given up before."""
        self._check_open()
        seconds = self._timeout if timeout is None else seconds_of("timeout", timeout)
        for number in range(self._retries + 1):
            try:
                return whole(self._transport.infer(call, seconds))
            except Unavailable as error:
                if not error.undone or number == self._retries:
                    raise
                if job:
                    self._cancel(job)
                time.sleep(RETRY_S * 2**number)
        raise AssertionError("unreachable")

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(CLOSED)

    @contextlib.contextmanager
    def _cancelling(self, job_id: str) -> Iterator[None]:
        """Cancel the job when its caller stops waiting for it, whatever the reason."""
        try:
            yield
        except (KeyboardInterrupt, TimedOut):
            self._cancel(job_id, COMES_WITHIN_S)
            raise

    def _cancel(self, job_id: str, within: float = 0.0) -> None:
        """Cancel a job if it is there, or comes within so many seconds."""
        until, call = time.monotonic() + within, job_call("cancel", job_id)
        with contextlib.suppress(TesseraError):
            while True:
                try:
                    self._transport.infer(call, JOB_TIMEOUT)
                    return
                except UnknownJob:
                    if time.monotonic() >= until:
                        return
                time.sleep(POLL_S)

    @contextlib.contextmanager
    def _reporting(self, job_id: str, news: News) -> Iterator[None]:
        """Tell the news of a job as long as the body takes. A callback that raises ends the job,
        and its error is raised here.
        """
        if not news.wanted:
            yield
            return
        over, failures = threading.Event(), list[BaseException]()

        def poll() -> None:
            """Ask for news again and again; a failed question is skipped."""
            while not over.wait(POLL_S):
                try:
                    answer = self._transport.infer(news.question, JOB_TIMEOUT)
                except InvalidInput as error:
                    news.refused(error)
                    continue
                except TesseraError:
                    continue
                try:
                    for _ in news.tell(answer):
                        raise TypeError(COROUTINE)
                except BaseException as error:
                    failures.append(error)
                    self._cancel(job_id)
                    return

        thread = threading.Thread(target=poll, name=f"progress of {job_id}", daemon=True)
        thread.start()
        try:
            yield
        except TesseraError:
            if not failures:
                raise
        finally:
            over.set()
            thread.join()
        if failures:
            raise failures[0]
