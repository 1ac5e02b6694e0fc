"""`jobs`: reads the board for clients, shows previews, cancels, and tells the server's load.

It has two processes. One of them may wait for a preview by the VAE, and the other answers
meanwhile. Both publish the board's metrics.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.codec.linear import decode_linearly
from tessera.contract import JOB_ACTIONS
from tessera.errors import InvalidInput, Unavailable
from tessera.load.reader import LoadReader
from tessera.manifest import LinearDecoder, Manifest, read_manifest
from tessera.requests.job_id import read_job_id
from tessera.requests.request import read_action, read_decoder
from tessera.shared.board import Board
from tessera.shared.previews import Latents, PreviewReader
from tessera.shared.settings import ServerSettings
from tessera.triton import pb
from tessera.triton.ending import Endings
from tessera.triton.metrics import BoardMetrics

Pixels = npt.NDArray[np.uint8]

_NOTHING: Pixels = np.zeros((0, 0, 3), np.uint8)


class TritonPythonModel:
    """ACTION, JOB_ID -> RESULT (JSON of the job's status); for a preview also DECODER -> IMAGE."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the board and the previews."""
        settings = ServerSettings.from_environment()
        self._board = Board(settings.board)
        Endings(settings, self._board)  # of jobs that are found lost here
        self._previews = PreviewReader(settings.previews)
        self._settings = settings
        self._metrics = BoardMetrics(settings, self._board)
        self._metrics.start()

    def finalize(self) -> None:
        """End the thread."""
        self._metrics.stop()

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        return pb.answer_each(requests, self._answer)

    def _answer(self, request: pb.Request) -> list[pb.TensorHandle]:
        inputs = pb.arrays(request)
        action = read_action(inputs, JOB_ACTIONS)
        if action == "load":
            return [_result(self._load.read()), pb.tensor("IMAGE", _NOTHING)]
        job_id = read_job_id(inputs)
        if not job_id:
            raise InvalidInput.described(
                "JOB_ID", "is missing", "the id of a running or recent job"
            )
        if action == "preview":
            return self._preview(job_id, read_decoder(inputs))
        status = self._board.cancel(job_id) if action == "cancel" else self._board.status(job_id)
        return [_result(dataclasses.asdict(status))]

    def _preview(self, job_id: str, decoder: str) -> list[pb.TensorHandle]:
        """The job's status and its latest picture; one without pixels as long as there is none."""
        pixels_of: Callable[[Latents], Pixels] = (
            partial(decode_linearly, self._linear) if decoder == "linear" else self._by_vae
        )
        ticket, status = self._board.watch(job_id)
        answer, image = dataclasses.asdict(status), _NOTHING
        answer |= {"decoder": decoder, "picture_step": None, "width": None, "height": None}
        if preview := self._previews.read(ticket):
            step, latents = preview
            height, width = (self._manifest.latents.pixels * side for side in latents.shape[1:])
            answer |= {"picture_step": step, "width": width, "height": height}
            image = pixels_of(latents)
        return [_result(answer), pb.tensor("IMAGE", image)]

    @cached_property
    def _manifest(self) -> Manifest:
        return read_manifest(self._settings.bundle)

    @cached_property
    def _load(self) -> LoadReader:
        return LoadReader(self._settings, self._board, self._manifest)

    @cached_property
    def _linear(self) -> LinearDecoder:
        decoder = self._manifest.linear_decoder
        if decoder is None:
            raise InvalidInput.described(
                "DECODER",
                f"is linear, which the bundle {self._settings.bundle.name} was built without",
                "vae, or a bundle that is built again",
            )
        return decoder

    def _by_vae(self, latents: Latents) -> Pixels:
        with self._previews.alone() as alone:
            if not alone:
                raise Unavailable(
                    "the VAE is at another preview; try again, or with DECODER linear"
                )
            decoded = pb.call("decode", [pb.tensor("LATENTS", latents)], ["IMAGE"])
            image: Pixels = decoded["IMAGE"].as_numpy()[0]
            return image


def _result(answer: dict[str, Any]) -> pb.TensorHandle:
    return pb.tensor("RESULT", json.dumps(answer).encode())
