"""The synchronous client."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, Unpack

from tessera.contract import MODELS, JobStatus
from tessera.errors import TesseraError, TimedOut, Unavailable, UnknownJob
from tessera.types import Array
from tessera_client.adapters import Adapter, adapters_call, read_adapters
from tessera_client.edits import Mask, edit_call
from tessera_client.messages import (
    EditOptions,
    GenerateOptions,
    Health,
    Result,
    generate_call,
    job_call,
    read_result,
    read_status,
)
from tessera_client.pictures import Picture
from tessera_client.templates import (
    Recorded,
    evict_call,
    list_call,
    read_answer,
    register_call,
)
from tessera_client.transport import Transport, connect
from tessera_client.wire import Call

PUBLIC_MODELS = tuple(MODELS)
"""Names of the models that clients may call; a gateway may hide the others."""
POLL_S = 0.1
RETRY_S = 0.5
JOB_TIMEOUT = 10.0
COMES_WITHIN_S = 2.0
"""A job that is to be cancelled may be on its way to the server, or wait there, for so long."""


class Client:
    """A connection to a Tessera server; usable in a `with` statement and from several threads.

    Args:
        url: `http://host:port` or `grpc://host:port`.
        timeout: seconds to wait for an answer, unless a call says otherwise.
        retries: how often a request is sent again that had no effect (no connection, or answered
            UNAVAILABLE).
        transport: what to use instead of a connection to `url`.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        *,
        timeout: float = 300.0,
        retries: int = 2,
        transport: Transport | None = None,
    ) -> None:
        self._transport = transport or connect(url)
        self._timeout = timeout
        self._retries = retries

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
        """Close the connections."""
        self._transport.close()

    def generate(
        self,
        prompt: str,
        *,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[JobStatus], None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Result:
        """Text to image.

        Args:
            prompt: what to draw.
            job_id: names the job for `status` and `cancel`; made up if left out.
            timeout: seconds.
            on_progress: called from another thread about ten times a second while the job runs.
            options: see `GenerateOptions`.

        Raises:
            TypeError, ValueError: an option is not of a form that can be sent.
            InvalidInput: a value is not accepted; the sentence says which and what is.
            Cancelled: somebody cancelled the job.
            Unavailable: no connection, or the server is busy or restarting.
            TimedOut: no answer in time; the job has been cancelled.
            InternalError: a fault of the server.

        A job whose caller stops waiting (timeout, Ctrl-C) is cancelled on the server.
        """
        job = job_id or uuid.uuid4().hex
        return self._picture(generate_call(prompt, job, options), job, timeout, on_progress)

    def edit(
        self,
        image: Picture | None,
        mask: Mask,
        prompt: str,
        *,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[JobStatus], None] | None = None,
        **options: Unpack[EditOptions],
    ) -> Result:
        """An image anew inside a mask; its pixels outside stay as they are, bit for bit.

        Args:
            image: a picture or an array (h, w, 3) of uint8; `None` if the option `template` names
                one that the server knows.
            mask: where to edit: see `tessera_client.edits.Mask`.
            prompt: what the picture shall show.
            job_id: see `generate`.
            timeout: seconds.
            on_progress: see `generate`.
            options: see `EditOptions`.

        Raises:
            TypeError, ValueError: the mask, an image or an option is not of a form that can be
                sent.
            TesseraError: as `generate`.
        """
        job = job_id or uuid.uuid4().hex
        call = edit_call(image, mask, prompt, job, options)
        return self._picture(call, job, timeout, on_progress)

    def _picture(
        self,
        call: Call,
        job: str,
        timeout: float | None,
        on_progress: Callable[[JobStatus], None] | None,
    ) -> Result:
        with self._reporting(job, on_progress), self._cancelling(job):
            return read_result(self._ask(call, timeout, job))

    def status(self, job_id: str) -> JobStatus:
        """How far a job is.

        Raises:
            UnknownJob: there is none of that id.
        """
        return read_status(self._ask(job_call("status", job_id), JOB_TIMEOUT))

    def cancel(self, job_id: str) -> JobStatus:
        """Ask for a job's end; it frees its place at the next denoising step.

        Raises:
            UnknownJob: there is none of that id.
        """
        return read_status(self._ask(job_call("cancel", job_id), JOB_TIMEOUT))

    def adapters(self) -> list[Adapter]:
        """The LoRAs that requests may name, and those that cannot be used with the reason."""
        return read_adapters(self._ask(adapters_call()))

    def register_template(
        self,
        image: Picture | None = None,
        *,
        template: str | None = None,
        steps: int | None = None,
        scheduler: str | None = None,
        timeout: float | None = None,
    ) -> Recorded:
        """Record a template's activations, so that its first sparse edit does not have to wait.

        Args:
            image: a picture or an array (h, w, 3) of uint8.
            template: id of an image that the server knows, instead of it.
            steps: of the edits to come; the bundle's usual number if left out.
            scheduler: of the edits to come.
            timeout: seconds.

        Raises:
            InvalidInput: a value is not accepted.
            Unavailable: there is no room for it.
        """
        call = register_call(image, template, steps, scheduler)
        return Recorded(**read_answer(self._ask(call, timeout)))

    def templates(self) -> dict[str, Any]:
        """What is known and recorded: `templates`, `disk` and `memory`, as the server tells it."""
        return read_answer(self._ask(list_call()))

    def evict_template(self, template: str) -> int:
        """Remove a template; returns how many bytes of the disk became free.

        Raises:
            InvalidInput: it is not known.
        """
        return int(read_answer(self._ask(evict_call(template)))["bytes"])

    def health(self) -> Health:
        """Readiness of the server and its public models; never raises.

        Says as much as Triton does: `generate` is not ready while one of its members `encode`,
        `render` and `decode` is reloaded, but `denoise`, which they call, is covered by no public
        model, and `edit` by itself only. Operators ask for the internal models' readiness, too.
        """
        return Health(self._transport.ready(), {m: self._transport.ready(m) for m in PUBLIC_MODELS})

    def _ask(
        self, call: Call, timeout: float | None = None, job: str | None = None
    ) -> dict[str, Array]:
        """The answer; a call that had no effect is sent again, its job given up before."""
        for number in range(self._retries + 1):
            try:
                return self._transport.infer(call, timeout or self._timeout)
            except Unavailable as error:
                if not error.undone or number == self._retries:
                    raise
                if job:
                    self._cancel(job)
                time.sleep(RETRY_S * 2**number)
        raise AssertionError("unreachable")

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
    def _reporting(self, job_id: str, report: Callable[[JobStatus], None] | None) -> Iterator[None]:
        if report is None:
            yield
            return
        over, question = threading.Event(), job_call("status", job_id)

        def poll() -> None:
            """Ask for the job's status again and again; a failed question is skipped."""
            while not over.wait(POLL_S):
                with contextlib.suppress(TesseraError):
                    report(read_status(self._transport.infer(question, JOB_TIMEOUT)))

        thread = threading.Thread(target=poll, name=f"progress of {job_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
