"""The synchronous client."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, Unpack

from tessera.errors import TesseraError, TimedOut, Unavailable
from tessera_client.adapters import Adapter, adapter_inputs, read_adapters
from tessera_client.edits import Mask, Picture, edit_inputs
from tessera_client.messages import (
    Array,
    EditOptions,
    GenerateOptions,
    Health,
    JobStatus,
    Result,
    generate_inputs,
    job_inputs,
    parameters_of,
    read_result,
    read_status,
)
from tessera_client.templates import (
    Recorded,
    evict_inputs,
    list_inputs,
    read_answer,
    register_inputs,
)
from tessera_client.transport import Parameters, Transport, connect

NEEDED_MODELS = (
    "generate",
    "edit",
    "encode",
    "render",
    "denoise",
    "decode",
    "jobs",
    "templates",
    "adapters",
)
POLL_S = 0.1
RETRY_S = 0.5
Outputs = dict[str, Array]


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
        self._timeout, self._retries = timeout, retries

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
            InvalidInput: a value is not accepted; the sentence says which and what is.
            Cancelled: somebody cancelled the job.
            Unavailable: no connection, or the server is busy or restarting.
            TimedOut: no answer in time; the job has been cancelled.
            InternalError: a fault of the server.

        A job whose caller stops waiting (timeout, Ctrl-C) is cancelled on the server.
        """
        job = job_id or uuid.uuid4().hex
        inputs = generate_inputs(prompt, job, options)
        return self._picture("generate", inputs, job, timeout, on_progress, parameters_of(options))

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
            TypeError, ValueError: the mask or the image is not of a form that can be sent.
            TesseraError: as `generate`.
        """
        job = job_id or uuid.uuid4().hex
        inputs = edit_inputs(image, mask, prompt, job, options)
        return self._picture("edit", inputs, job, timeout, on_progress, parameters_of(options))

    def _picture(
        self,
        model: str,
        inputs: Outputs,
        job: str,
        timeout: float | None,
        on_progress: Callable[[JobStatus], None] | None,
        parameters: Parameters,
    ) -> Result:
        with self._reporting(job, on_progress), self._cancelling(job):
            outputs = self._retrying(
                lambda: self._transport.infer(
                    model, inputs, ("IMAGE", "INFO"), timeout or self._timeout, parameters
                )
            )
        return read_result(outputs)

    def status(self, job_id: str) -> JobStatus:
        """How far a job is.

        Raises:
            UnknownJob: there is none of that id.
        """
        return self._job("status", job_id)

    def cancel(self, job_id: str) -> JobStatus:
        """Ask for a job's end; it frees its place at the next denoising step.

        Raises:
            UnknownJob: there is none of that id.
        """
        return self._job("cancel", job_id)

    def adapters(self) -> list[Adapter]:
        """The LoRAs that requests may name, and those that cannot be used with the reason."""
        return read_adapters(
            self._retrying(
                lambda: self._transport.infer(
                    "adapters", adapter_inputs(), ("RESULT",), self._timeout
                )
            )
        )

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
        inputs = register_inputs(image, template, steps, scheduler)
        return Recorded(**self._templates(inputs, timeout))

    def templates(self) -> dict[str, Any]:
        """What is known and recorded: `templates`, `disk` and `memory`, as the server tells it."""
        return self._templates(list_inputs())

    def evict_template(self, template: str) -> int:
        """Remove a template; returns how many bytes of the disk became free.

        Raises:
            InvalidInput: it is not known.
        """
        return int(self._templates(evict_inputs(template))["bytes"])

    def _templates(self, inputs: Outputs, timeout: float | None = None) -> dict[str, Any]:
        limit = timeout or self._timeout
        return read_answer(
            self._retrying(lambda: self._transport.infer("templates", inputs, ("RESULT",), limit))
        )

    def health(self) -> Health:
        """Readiness of the server and its models; never raises."""
        return Health(self._transport.ready(), {m: self._transport.ready(m) for m in NEEDED_MODELS})

    def _job(self, action: str, job_id: str) -> JobStatus:
        inputs = job_inputs(action, job_id)
        return read_status(
            self._retrying(lambda: self._transport.infer("jobs", inputs, ("RESULT",), 10.0))
        )

    def _retrying(self, attempt: Callable[[], Outputs]) -> Outputs:
        for number in range(self._retries + 1):
            try:
                return attempt()
            except Unavailable as error:
                if not error.undone or number == self._retries:
                    raise
                time.sleep(RETRY_S * 2**number)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _cancelling(self, job_id: str) -> Iterator[None]:
        """Cancel the job when its caller stops waiting for it, whatever the reason."""
        try:
            yield
        except (KeyboardInterrupt, TimedOut):
            with contextlib.suppress(TesseraError):
                self._transport.infer("jobs", job_inputs("cancel", job_id), ("RESULT",), 5.0)
            raise

    @contextlib.contextmanager
    def _reporting(self, job_id: str, report: Callable[[JobStatus], None] | None) -> Iterator[None]:
        if report is None:
            yield
            return
        over = threading.Event()

        def poll() -> None:
            """Ask for the job's status again and again; a failed question is skipped."""
            while not over.wait(POLL_S):
                with contextlib.suppress(TesseraError):
                    report(
                        read_status(
                            self._transport.infer(
                                "jobs", job_inputs("status", job_id), ("RESULT",), 5.0
                            )
                        )
                    )

        thread = threading.Thread(target=poll, name=f"progress of {job_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
