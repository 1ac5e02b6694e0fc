"""Previews: the picture of a job while it is drawn, without any network."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tessera.contract import JOBS, JobStatus
from tessera.errors import InvalidInput
from tessera.types import Array
from tessera_client.checks import callback_of
from tessera_client.messages import encode_all, job_call, read_status
from tessera_client.wire import Call

OnProgress = Callable[[JobStatus], Any]
"""Called with a status. `AsyncClient` takes coroutine functions, too, and awaits them."""


@dataclass(frozen=True, eq=False)
class Preview:
    """A job's picture so far: what the picture would be if the prediction of the latest step was
    right.

    Attributes:
        step, steps: after how many denoising steps, of how many.
        image: (h, w, 3), uint8. Of the `linear` decoder it has one pixel for each latent, so it is
            4 or 8 times smaller than the picture; of the `vae` decoder it has the picture's size.
        width, height: of the picture, in pixels.
    """

    step: int
    steps: int
    image: Array
    width: int
    height: int

    def enlarged(self) -> Image.Image:
        """The preview at the size of the picture, smoothly."""
        size = self.width, self.height
        return Image.fromarray(self.image).resize(size, Image.Resampling.BICUBIC)


OnPreview = Callable[[Preview], Any]
"""Called with a preview; see `OnProgress`."""


def preview_call(job_id: str, decoder: str | None = None) -> Call:
    """The call of `jobs` for a preview."""
    given = {"ACTION": "preview", "JOB_ID": job_id, "DECODER": decoder}
    return Call("jobs", encode_all(JOBS, given), ("RESULT", "IMAGE"))


def read_preview(outputs: Mapping[str, Array]) -> Preview | None:
    """The preview in an answer of `jobs`; `None` as long as there is none."""
    answer = json.loads(outputs["RESULT"].reshape(-1)[0])
    if answer["picture_step"] is None:
        return None
    return Preview(
        step=answer["picture_step"],
        steps=answer["total"],
        image=outputs["IMAGE"][0],
        width=answer["width"],
        height=answer["height"],
    )


class News:
    """What to ask about a running job again and again, and whom to tell the answers.

    Args:
        job_id: the job's id.
        on_progress: gets every status.
        on_preview: gets every new preview.
        awaits: whether coroutines are awaited.

    Raises:
        TypeError: one of the two cannot be called, or is a coroutine function that nobody awaits.
    """

    def __init__(
        self,
        job_id: str,
        on_progress: OnProgress | None,
        on_preview: OnPreview | None = None,
        *,
        awaits: bool = False,
    ) -> None:
        self._job_id = job_id
        self._on_progress = callback_of("on_progress", on_progress, awaits=awaits)
        self._on_preview = callback_of("on_preview", on_preview, awaits=awaits)
        self._step = 0

    @property
    def wanted(self) -> bool:
        """Whether there is anybody to tell."""
        return self._on_progress is not None or self._on_preview is not None

    @property
    def question(self) -> Call:
        """What to ask next."""
        return preview_call(self._job_id) if self._on_preview else job_call("status", self._job_id)

    def tell(self, outputs: Mapping[str, Array]) -> Iterator[Awaitable[Any]]:
        """Hand on the answer to `question`; what callbacks return to be awaited comes back."""
        if self._on_progress:
            yield from _awaitable(self._on_progress(read_status(outputs)))
        preview = read_preview(outputs) if self._on_preview else None
        if self._on_preview and preview and preview.step != self._step:
            self._step = preview.step
            yield from _awaitable(self._on_preview(preview))

    def refused(self, error: InvalidInput) -> None:
        """Ask for no more previews: the server has none."""
        if self._on_preview:
            warnings.warn(f"there are no previews: {error}", stacklevel=2)
        self._on_preview = None


def _awaitable(returned: Any) -> list[Awaitable[Any]]:
    return [returned] if inspect.isawaitable(returned) else []
