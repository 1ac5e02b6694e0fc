"""`templates`: records templates, lists them, evicts them.

Has two processes, so that a list does not wait for a recording. Each also records, while the server
has nothing else to do, what edits have found missing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from tessera.contract import SPARSE_GRAPHS, TEMPLATE_ACTIONS
from tessera.engines.bundle import Bundle
from tessera.errors import Cancelled, InvalidInput, TesseraError
from tessera.requests.edit import read_image
from tessera.requests.fields import Inputs, text_of
from tessera.requests.parameters import job_of
from tessera.requests.request import read_action, read_schedule
from tessera.shared.board import Board
from tessera.shared.settings import ServerSettings
from tessera.templates.pictures import find_picture, unknown
from tessera.templates.store import Recording, RecordingKey, TemplateStore
from tessera.triton import pb

if TYPE_CHECKING:
    from tessera.templates.recorder import Recorder

IDLE_S = 1.0
"""How long nothing must have run before a template is recorded that nobody waits for."""

AFTER_ERROR_S = 30.0
"""How long nothing is tried when what is wanted could not be read."""

GIVE_WAY_S = 1.0
"""Longest wait between two batches of such a recording."""


class TritonPythonModel:
    """ACTION, IMAGE or TEMPLATE, STEPS, SCHEDULER -> RESULT (JSON)."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the bundle, the board and the store; torch and networks wait for a recording."""
        settings = ServerSettings.from_environment()
        self._bundle = Bundle.of(settings)
        self._manifest = self._bundle.manifest
        self._settings = settings.templates
        self._store = TemplateStore(self._settings.folder, budget=self._settings.disk)
        self._board = Board(settings.board)
        self._busy = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._record_when_idle, daemon=True)
        if self._manifest.can_be_sparse:
            self._thread.start()

    @cached_property
    def _recorder(self) -> Recorder:
        """Used by whoever holds `_busy`."""
        import torch

        from tessera.templates.recorder import Recorder  # imports networks: 3 s of CPU time

        torch.set_num_threads(self._bundle.threads)
        return Recorder.of(self._bundle, self._store, budget=self._settings.size)

    def finalize(self) -> None:
        """End the thread."""
        self._ending.set()

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        return pb.answer_each(requests, self._answer)

    def _answer(self, request: pb.Request) -> list[pb.TensorHandle]:
        inputs = pb.arrays(request)
        action = read_action(inputs, TEMPLATE_ACTIONS)
        register = partial(self._register, job_id=job_of(pb.parameters(request)))
        answers: dict[str, Callable[[Inputs], dict[str, Any]]] = {
            "register": register,
            "list": self._list,
            "evict": self._evict,
        }
        return [pb.tensor("RESULT", json.dumps(answers[action](inputs)).encode())]

    def _register(self, inputs: Inputs, *, job_id: str | None) -> dict[str, Any]:
        """For a client, or for an edit: its job may be cancelled before its turn comes."""
        if not self._manifest.can_be_sparse:
            accepted = f"list, evict, since the bundle has no graphs {' and '.join(SPARSE_GRAPHS)}"
            raise InvalidInput("ACTION", "register", accepted)
        began = time.monotonic()
        picture = read_image(inputs, self._manifest, partial(find_picture, self._store.pictures))
        steps, scheduler = read_schedule(inputs, self._manifest)
        from tessera.denoise.canvas import TEMPLATE_SEED

        identity = self._store.keep(picture)
        key = RecordingKey(self._manifest.digest, identity, scheduler, steps, TEMPLATE_SEED)
        with self._busy:
            if job_id is not None and self._board.status(job_id).cancelled:
                raise Cancelled(f"job {job_id} was cancelled")
            recording, made = self._recorder.ensure(key)
        self._store.done(key)
        seconds = round(time.monotonic() - began, 3)
        described = {"template": identity, "recorded": made, "seconds": seconds}
        return described | _describe(recording)

    def _list(self, inputs: Inputs) -> dict[str, Any]:
        recordings = [r for r in self._store.recordings() if r.key.bundle == self._manifest.digest]
        templates = []
        for identity in self._store.pictures.known():
            mine = [_describe(r) for r in recordings if r.key.template == identity]
            height, width = self._store.pictures.size_of(identity)
            templates.append(
                {"template": identity, "width": width, "height": height, "recordings": mine}
            )
        used = sum(r.bytes for r in self._store.recordings())
        counters = self._board.cache
        reads = counters["hits"] + counters["misses"]
        rate = round(counters["hits"] / reads, 4) if reads else None
        return {
            "templates": templates,
            "disk": {"bytes": used, "budget": self._settings.disk},
            "memory": {**counters, "budget": self._settings.memory, "hit_rate": rate},
        }

    def _evict(self, inputs: Inputs) -> dict[str, Any]:
        identity = text_of(inputs, "TEMPLATE", "", 100)
        if identity not in self._store.pictures.known():
            raise unknown(self._store.pictures, identity)
        return {"template": identity, "bytes": self._store.evict(identity)}

    def _record_when_idle(self) -> None:
        """The thread: records what is wanted, one after the other, and gives way to requests."""
        pause = IDLE_S
        while not self._ending.wait(pause):
            pause = IDLE_S
            try:
                if not self._board.running():
                    self._record_wanted()
            except Exception as error:
                pb.log(f"what edits want cannot be recorded: {error!r}")
                pause = AFTER_ERROR_S

    def _record_wanted(self) -> None:
        """The latest, unless this process or the other one is recording; nobody waits for it."""
        for key in self._store.wanted(self._manifest.digest)[:1]:
            if not self._busy.acquire(blocking=False):
                return
            try:
                if not self._recorder.attempt(key, between=self._give_way):
                    return
            except TesseraError as error:
                pb.log(str(error))
            except Exception as error:
                pb.log(f"template {key.template} could not be recorded: {error!r}")
            finally:
                self._busy.release()
            self._store.done(key)

    def _give_way(self) -> None:
        """Wait while something is denoised, but not for long: somebody may wait for this, too."""
        until = time.monotonic() + GIVE_WAY_S
        while self._board.denoising() and time.monotonic() < until:
            time.sleep(0.02)


def _describe(recording: Recording) -> dict[str, Any]:
    return {
        "steps": recording.key.steps,
        "scheduler": recording.key.scheduler,
        "storage": recording.storage.name,
        "bytes": recording.bytes,
    }
