"""`edit`: one process for each edit under way; does what the ensemble `generate` does, by calls.

Imports neither torch nor engines. It asks `denoise` itself: it has a process of its own, so there
is nothing to wait for in the queue of `render`, where a call would have no priority.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial
from typing import Any

from tessera.contract import Info, checksum
from tessera.manifest import Manifest, read_manifest
from tessera.requests.framing import Framed, framed, needs_framing
from tessera.requests.job_id import given_job_id
from tessera.requests.parameters import HELD, lora_policy_of, priority_of
from tessera.shared.board import Board
from tessera.shared.machine import memory_share
from tessera.shared.metrics import Kind
from tessera.shared.settings import ServerSettings
from tessera.templates.files import Patience
from tessera.templates.pictures import Pictures, find_picture
from tessera.triton import pb
from tessera.triton.ending import Endings
from tessera.triton.handing import TENSORS, drawn, plan_of, sums_of
from tessera.triton.render import Renderer
from tessera.types import Array


class TritonPythonModel:
    """Inputs of the contract -> IMAGE, INFO."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the board."""
        self._settings = ServerSettings.from_environment()
        self._board = Board(self._settings.board)
        self._endings = Endings(self._settings, self._board)
        self._held = memory_share()
        self._renderer = Renderer(self._settings, self._board, queued=False)

    @cached_property
    def _manifest(self) -> Manifest:
        return read_manifest(self._settings.bundle)

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        return pb.answer_each(requests, self._edit)

    def _edit(self, request: pb.Request) -> list[pb.TensorHandle]:
        given = pb.handles(request)
        try:
            inputs, framing = self._framed(given)
            choices = _choices(request) | sums_of(inputs)
            choices |= {HELD: framing.held} if framing else {}
        except Exception as error:  # of all others, encode counts those that it refuses
            named = {"JOB_ID": given["JOB_ID"].as_numpy()} if "JOB_ID" in given else {}
            self._endings.refused(Kind.EDIT, error, given_job_id(named))
            raise
        mask = pb.tensor("MASK", framing.edited) if framing else inputs["MASK"]
        sum_of_mask = sums_of({"MASK": mask})  # now, not when it has lain there for seconds
        encoded = pb.call(
            "encode",
            list(inputs.values()),
            ["PLAN", *TENSORS, "PIXELS"],
            choices,
            pb.timeout(request),  # from then on the job is on the board and can be cancelled
        )
        plan = plan_of(encoded, called=True)
        latents, stats = self._renderer.render(encoded)
        try:
            parts = [encoded["PLAN"], latents, stats, encoded["PIXELS"], mask]
            answer = pb.call("decode", parts, ["IMAGE", "INFO"], sum_of_mask)
            info, image = drawn(plan, answer)
        except Exception as error:
            self._endings.failed(plan, error)  # unless decode has
            raise
        return list(answer.values()) if framing is None else _answered(image[0], info, framing)

    def _framed(
        self, inputs: dict[str, pb.TensorHandle]
    ) -> tuple[dict[str, pb.TensorHandle], Framed | None]:
        """The inputs for the models behind, and what becomes of their answer. Most edits are handed
        on untouched.
        """
        arrays = {name: handle.as_numpy() for name, handle in inputs.items()}
        if not needs_framing(arrays, self._manifest.limits):
            return inputs, None
        check_memory = partial(self._board.check_memory, most=self._held)
        framing = framed(arrays, self._manifest, self._find_template, check_memory)
        kept = {name: h for name, h in inputs.items() if name not in framing.dropped}
        new = {name: pb.tensor(name, array[0]) for name, array in framing.inputs.items()}
        return {**kept, **new}, framing

    @cached_property
    def _find_template(self) -> Any:
        pictures = Pictures(self._settings.templates.folder / "pictures")
        return partial(find_picture, pictures, patience=Patience())


def _choices(request: pb.Request) -> dict[str, Any]:
    """Parameters of the call to `encode`.

    Raises:
        InvalidInput: one is not accepted.
    """
    given = pb.parameters(request)
    return {"lora_policy": lora_policy_of(given), "job_priority": priority_of(given)}


def _answered(drawing: Array, info: Info, framing: Framed) -> list[pb.TensorHandle]:
    """IMAGE and INFO, with the drawing where it belongs."""
    image = framing.answer(drawing)
    info = dataclasses.replace(info, frame=framing.report, image_crc32=checksum(image))
    return [pb.tensor("IMAGE", image), pb.tensor("INFO", info.to_json())]
