"""The synchronous client."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tessera.contract import MODELS, JobStatus
from tessera.errors import InvalidInput
from tessera_client.adapters import Adapter, adapters_call, read_adapters
from tessera_client.bundle import ServedBundle, bundle_call, read_bundle
from tessera_client.capabilities import Capabilities, busy_of, load_call
from tessera_client.checks import seconds_of
from tessera_client.connection import COMES_WITHIN_S, JOB_TIMEOUT, Connection
from tessera_client.edits import Mask, Rectangle
from tessera_client.messages import (
    ControlList,
    EditManyOptions,
    EditOptions,
    GenerateOptions,
    Health,
    LoraList,
    ManyOptions,
    job_call,
    read_json,
    read_status,
)
from tessera_client.orders import Wish, edit, generation, numbered, seeds_of
from tessera_client.pictures import Picture
from tessera_client.previews import (
    News,
    OnPreview,
    OnProgress,
    Preview,
    preview_call,
    read_preview,
)
from tessera_client.repainting import Repainted, repaint_of
from tessera_client.results import Result
from tessera_client.templates import Recorded, evict_call, list_call, read_answer, register_call

if TYPE_CHECKING:
    from typing_extensions import Unpack

PUBLIC_MODELS = tuple(MODELS)
"""Names of the models that clients may call; a gateway may hide the others."""
AT_ONCE = 16
"""Pictures of one `generate_many` that are under way at a time, so that they share ticks."""


class Client(Connection):
    """A connection to a Tessera server, from any thread. Its arguments are `Connection`'s."""

    def generate(
        self,
        prompt: str,
        *,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Result:
        """Text to image.

        Args:
            prompt: what to draw.
            job_id: names the job for `status` and `cancel`; made up if left out.
            timeout: seconds.
            on_progress: called from another thread about ten times a second while the job runs.
            on_preview: called from another thread with the picture so far, whenever there is a new
                one; asked for about ten times a second.
            options: see `GenerateOptions`.

        Raises:
            TypeError, ValueError: an argument is not of a form that can be sent.
            InvalidInput: a value is not accepted; the sentence says which and what is.
            Cancelled: somebody cancelled the job.
            Unavailable: no connection, or the server is busy or restarting.
            TimedOut: no answer in time; the job has been cancelled.
            InternalError: a fault of the server.
            RuntimeError: the client is closed.

        A job whose caller stops waiting (timeout, Ctrl-C) is cancelled on the server. So is one
        whose callback raises, and its error is raised here.
        """
        return self._one(generation(prompt, options), job_id, timeout, on_progress, on_preview)

    def edit(
        self,
        image: Picture | None,
        mask: Mask,
        prompt: str,
        *,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        **options: Unpack[EditOptions],
    ) -> Result:
        """Edit the masked part of an image; pixels outside stay as they are, bit for bit.

        Args:
            image: a picture of any size, in any form of `tessera_client.pictures.Picture`; `None`
                if the option `template` names one that the server knows.
            mask: where to edit: see `tessera_client.edits.Mask`.
            prompt: what the picture shall show.
            job_id: see `generate`.
            timeout: seconds.
            on_progress: see `generate`.
            on_preview: see `generate`.
            options: see `EditOptions`.

        Raises:
            TypeError, ValueError: the mask, an image or an option is not of a form that can be
                sent.
            TesseraError: as `generate`.
        """
        wish = edit(image, mask, prompt, options)
        return self._one(wish, job_id, timeout, on_progress, on_preview)

    def generate_many(
        self,
        prompt: str,
        *,
        n: int | None = None,
        seed: int | Sequence[int] | None = None,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[ManyOptions],
    ) -> Iterator[Result]:
        """Pictures of one prompt that are drawn at once, so that they share ticks.

        Args:
            prompt: what to draw.
            n: how many.
            seed: of the first, from which the others count up, or a list of all seeds.
            job_id: of the jobs, with -1, -2 ... behind it.
            timeout: seconds for each picture.
            on_progress: see `generate`; told of every job, from several threads.
            options: see `ManyOptions`.

        Returns:
            The pictures in the order of their seeds, each as soon as it and those before it are
            there. It begins with the first `next`. Whoever closes it early, or gets an error,
            cancels the others.

        Raises:
            TypeError, ValueError, TesseraError: see `generate`.
        """
        return self._many(generation(prompt, options), n, seed, job_id, timeout, on_progress)

    def edit_many(
        self,
        image: Picture | None,
        mask: Mask,
        prompt: str,
        *,
        n: int | None = None,
        seed: int | Sequence[int] | None = None,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[EditManyOptions],
    ) -> Iterator[Result]:
        """Edits of one picture that are drawn at once; see `edit` and `generate_many`."""
        wish = edit(image, mask, prompt, options)
        return self._many(wish, n, seed, job_id, timeout, on_progress)

    def repaint(
        self,
        image: Picture,
        boxes: Sequence[Rectangle],
        prompt: str | Sequence[str],
        *,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[EditOptions],
    ) -> Repainted:
        """Draw boxes of an image anew, each enlarged and all at once; see `repaint_of`."""
        self._check_open()
        asked = repaint_of(image, boxes, prompt, options, job_id)
        return asked.done(list(self._drawn(asked.wishes, timeout, on_progress)))

    def _one(
        self,
        wish: Wish,
        job_id: str | None,
        timeout: float | None,
        on_progress: OnProgress | None,
        on_preview: OnPreview | None = None,
    ) -> Result:
        self._check_open()
        seconds = self._timeout if timeout is None else seconds_of("timeout", timeout)
        job = uuid.uuid4().hex if job_id is None else job_id
        news = News(job, on_progress, on_preview)
        order = wish.order(job, self.bundle() if wish.needs_bundle else None)
        with self._reporting(job, news), self._cancelling(job):
            return order.result(self._ask(order.call, seconds, job))

    def _many(
        self,
        wish: Wish,
        n: int | None,
        seed: int | Sequence[int] | None,
        job_id: str | None,
        timeout: float | None,
        on_progress: OnProgress | None,
    ) -> Iterator[Result]:
        self._check_open()
        if timeout is not None:
            seconds_of("timeout", timeout)
        first = uuid.uuid4().hex if job_id is None else job_id
        News(first, on_progress)
        wishes = {job: wish.with_seed(s) for job, s in numbered(first, seeds_of(n, seed))}
        return self._drawn(wishes, timeout, on_progress)

    def _drawn(
        self, wishes: dict[str, Wish], timeout: float | None, on_progress: OnProgress | None
    ) -> Iterator[Result]:
        """The pictures of wishes by their job's id, in order."""
        under_way: dict[str, Future[Result]] = {}
        with ThreadPoolExecutor(min(AT_ONCE, len(wishes) or 1), "tessera") as pool:
            try:
                for job, wish in wishes.items():
                    under_way[job] = pool.submit(self._one, wish, job, timeout, on_progress)
                for job in wishes:
                    yield under_way[job].result()
                    del under_way[job]
            finally:
                left = [job for job, future in under_way.items() if not future.cancel()]
                for job in left:
                    if not under_way[job].done():
                        self._cancel(job, COMES_WITHIN_S)

    def status(self, job_id: str) -> JobStatus:
        """How far a job is.

        Raises:
            UnknownJob: there is none of that id.
        """
        return read_status(self._ask(job_call("status", job_id), JOB_TIMEOUT))

    def preview(self, job_id: str, decoder: str | None = None) -> Preview | None:
        """A job's picture so far; `None` as long as there is none.

        Args:
            job_id: the job's id.
            decoder: `linear` (if left out), or `vae`: slower, at full size and exact.

        Raises:
            UnknownJob: there is none of that id.
            InvalidInput: the server has no such decoder.
            Unavailable: it decodes another preview by the VAE.
        """
        return read_preview(self._ask(preview_call(job_id, decoder), JOB_TIMEOUT))

    def cancel(self, job_id: str) -> JobStatus:
        """Ask for a job's end; it frees its place at the next denoising step.

        Raises:
            UnknownJob: there is none of that id.
        """
        return read_status(self._ask(job_call("cancel", job_id), JOB_TIMEOUT))

    def adapters(self) -> list[Adapter]:
        """The LoRAs that requests may name, and those that cannot be used with the reason."""
        return read_adapters(self._ask(adapters_call()))

    def bundle(self) -> ServedBundle:
        """What is served: its name, defaults, limits and ControlNets."""
        return read_bundle(self._ask(bundle_call()))

    def capabilities(self) -> Capabilities:
        """What requests may ask for, and how busy the server is."""
        bundle, loras = self.bundle(), self.adapters()
        try:
            busy = busy_of(read_json(self._ask(load_call(), JOB_TIMEOUT)))
        except InvalidInput:  # an older server does not tell, or the key may not ask
            busy = None
        return Capabilities(bundle, loras, busy)

    def register_template(
        self,
        image: Picture | None = None,
        *,
        template: str | None = None,
        steps: int | None = None,
        scheduler: str | None = None,
        copies: int | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        prompt_syntax: str | None = None,
        clip_skip: int | None = None,
        loras: LoraList = (),
        controls: ControlList = (),
        timeout: float | None = None,
    ) -> Recorded:
        """Record a template's activations, so that its first sparse edit does not have to wait.

        Args:
            image: a picture or an array (h, w, 3) of uint8.
            template: id of an image that the server knows, instead of it.
            steps: of the edits to come; the bundle's usual number if left out.
            scheduler: of the edits to come.
            copies: workers of a fleet that are to have it, as far as there are so many. A single
                server accepts 1.
            prompt: of the edits to come, which are then nearer to dense ones.
            negative_prompt: likewise.
            prompt_syntax: see `ManyOptions`.
            clip_skip: see `ManyOptions`.
            loras: of the edits to come, see `ManyOptions`.
            controls: of the edits to come, with their images, see `ManyOptions`.
            timeout: seconds.

        Raises:
            InvalidInput: a value is not accepted.
            Unavailable: there is no room for it.
        """
        given = {"template": template, "steps": steps, "scheduler": scheduler, "copies": copies}
        given |= {"prompt": prompt, "negative_prompt": negative_prompt, "clip_skip": clip_skip}
        given["prompt_syntax"] = prompt_syntax
        call = register_call(image, loras=loras, controls=controls, **given)
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
        self._check_open()
        return Health(self._transport.ready(), {m: self._transport.ready(m) for m in PUBLIC_MODELS})
