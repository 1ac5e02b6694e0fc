"""`templates`: records templates, lists them, evicts them, gives their pictures back.

Has two processes, so that a list does not wait for a recording. Each also records, while the server
has nothing else to do, what edits have found missing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.contract import SPARSE_GRAPHS, TEMPLATE_ACTIONS
from tessera.engines.bundle import Bundle
from tessera.errors import Cancelled, InvalidInput, TesseraError, Unavailable
from tessera.plan import ControlUse
from tessera.requests.controls import identified, prepared, read_controls
from tessera.requests.edit import read_image
from tessera.requests.fields import Inputs, scalar_of, text_of
from tessera.requests.framing import filled_up
from tessera.requests.parameters import adapters_of, job_of, texts_of
from tessera.requests.request import (
    Lora,
    Prompts,
    read_action,
    read_loras,
    read_prompts,
    read_schedule,
)
from tessera.shared.board import Board
from tessera.shared.settings import ServerSettings
from tessera.templates.keys import recorded_controls
from tessera.templates.pictures import find_picture, unknown
from tessera.templates.registering import Waiting, controls_of, describe, keys_of, loras_of
from tessera.templates.store import RecordingKey, TemplateStore
from tessera.templates.turn import Turn
from tessera.triton import pb
from tessera.triton.ending import Endings
from tessera.triton.metrics import Metrics
from tessera.triton.render import open_residency
from tessera.types import Array
from tessera.variants import VARIANTS

if TYPE_CHECKING:
    from tessera.codec.words import Words
    from tessera.controls.residency import Residency
    from tessera.templates.recorder import Recorder

IDLE_S = 1.0
"""How long nothing must have run before a template is recorded that nobody waits for, but that has
been wanted more than once."""

ONCE_IDLE_S = 5.0
"""The same of one that has been wanted once. A busy server makes no recordings for nothing."""

AFTER_ERROR_S = 30.0
"""How long nothing is tried when what is wanted could not be read."""

RELEASE_S = 120.0
"""After so long without a recording, the networks that make them leave memory: a second UNet."""

DISK_S = 30.0
"""How often the size of all recordings is looked up for the metrics, and old texts are removed."""

GIVE_WAY_S = 10.0
"""Longest wait between two steps of such a recording."""

GIVE_WAY_LOOK_S = 0.02

_NO_PICTURE: Array = np.zeros((0, 0, 3), np.uint8)


class TritonPythonModel:
    """ACTION, IMAGE or TEMPLATE, STEPS, SCHEDULER, COPIES, a prompt, LORAS, CONTROLS -> RESULT
    (JSON), IMAGE.
    """

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the bundle, the board and the store; torch and networks wait for a recording."""
        settings = ServerSettings.from_environment()
        self._bundle = Bundle.of(settings)
        self._manifest = self._bundle.manifest
        self._settings = settings.templates
        self._open_residency = partial(open_residency, settings)
        self._adapters = settings.adapters
        self._store = TemplateStore(self._settings.folder, budget=self._settings.disk)
        self._board = Board(settings.board)
        Endings(settings, self._board)  # of jobs that are found lost here
        self._busy = Turn()
        # Whoever imports diffusers while another thread does gets a module without its classes.
        self._importing = threading.Lock()
        self._recorded = time.monotonic()
        self._ending = threading.Event()
        self._metrics = Metrics()
        self._measured = -DISK_S
        self._thread = threading.Thread(target=self._record_when_idle, daemon=True)
        if self._manifest.can_be_sparse:
            self._thread.start()

    @cached_property
    def _residency(self) -> Residency:
        return self._open_residency()

    @cached_property
    def _words(self) -> Callable[[], Words]:
        """Textual inversions that prompts may have."""
        with self._importing:
            from tessera.adapters.inversion import Inversions  # imports torch, like the recorder

        widths = self._bundle.text_widths(VARIANTS[self._manifest.variant].text_encoders)
        return Inversions(self._bundle.folder, self._adapters.folders, widths).words

    @cached_property
    def _recorder(self) -> Recorder:
        """Used by whoever holds `_busy`."""
        with self._importing:
            import torch

            from tessera.adapters.recorded import RecordedAdapters
            from tessera.templates.recorder import Recorder  # imports networks: 3 s of CPU time

        torch.set_num_threads(self._bundle.threads)
        adapters = partial(RecordedAdapters, self._bundle, self._adapters)
        options: dict[str, Any] = {"budget": self._settings.largest, "adapters": adapters}
        return Recorder.of(self._bundle, self._store, words=self._words, **options)

    def finalize(self) -> None:
        """End the thread."""
        self._ending.set()

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        return pb.answer_each(requests, self._answer)

    def _answer(self, request: pb.Request) -> list[pb.TensorHandle]:
        inputs = pb.arrays(request)
        action = read_action(inputs, TEMPLATE_ACTIONS)
        _check_copies(inputs)
        if action == "picture":
            return self._picture(inputs)
        given = pb.parameters(request)
        waiting = Waiting(job_of(given), texts_of(given), adapters_of(given))
        answers: dict[str, Callable[[Inputs], dict[str, Any]]] = {
            "register": partial(self._register, waiting=waiting),
            "list": self._list,
            "evict": self._evict,
        }
        return _answered(answers[action](inputs), _NO_PICTURE)

    def _register(self, inputs: Inputs, *, waiting: Waiting) -> dict[str, Any]:
        """For a client, or for an edit: its job may be cancelled before its turn comes."""
        if not self._manifest.can_be_sparse:
            others = ", ".join(a for a in TEMPLATE_ACTIONS if a != "register")
            accepted = f"{others}, since the bundle has no graphs {' and '.join(SPARSE_GRAPHS)}"
            raise InvalidInput("ACTION", "register", accepted)
        began = time.monotonic()
        inputs = filled_up(inputs, self._manifest.limits)
        picture = read_image(inputs, self._manifest, partial(find_picture, self._store.pictures))
        steps, scheduler = read_schedule(inputs, self._manifest)
        prompts, loras = read_prompts(inputs, self._manifest), read_loras(inputs)
        uses, images = self._controls(inputs, picture)
        with self._importing:
            from tessera.controls.recorded import RecordedControls
            from tessera.denoise.canvas import TEMPLATE_SEED
            from tessera.triton.controls import ask

        try:
            identity = self._store.keep(picture)
        except OSError as error:
            reason = error.strerror or str(error)
            raise Unavailable(f"the template cannot be kept: {reason}") from error
        key = RecordingKey(self._manifest.digest, identity, scheduler, steps, TEMPLATE_SEED)
        key = key.with_controls(recorded_controls(uses, range(key.evaluations)))
        with self._busy, self._loaded(key):
            job_id = waiting.job_id
            if job_id is not None and self._board.status(job_id).cancelled:
                raise Cancelled(f"job {job_id} was cancelled")
            keys = waiting.keys(key) if waiting.texts else self._keys(key, prompts, loras)
            ensure = partial(self._recorder.ensure, controls=RecordedControls(ask, images))
            recordings, made = zip(*map(ensure, keys), strict=True)
            for recording in recordings if job_id is None else ():  # a client's, not an edit's
                self._store.register(recording)
            self._recorded = time.monotonic()
        for each in keys:
            self._store.notes.remove(each)
        seconds = round(time.monotonic() - began, 3)
        described = {"template": identity, "recorded": any(made), "seconds": seconds}
        # Older clients know no such keys.
        further: dict[str, Any] = {"copies": 1} if "COPIES" in inputs else {}
        further |= {"prompt": keys[-1].text} if "PROMPT" in inputs else {}
        further |= {"loras": loras_of(keys[-1])} if "LORAS" in inputs else {}
        further |= {"controls": controls_of(keys[-1])} if "CONTROLS" in inputs else {}
        whole = {"bytes": sum(recording.bytes for recording in recordings)}
        return described | describe(recordings[-1]) | whole | further

    def _controls(
        self, inputs: Inputs, picture: Array
    ) -> tuple[Sequence[ControlUse], Mapping[str, Array]]:
        """ControlNets, and their prepared images by digest."""
        height, width = picture.shape[:2]
        controls = read_controls(inputs, self._manifest, width, height)
        images = prepared(controls, width, height)
        uses = identified([control.use for control in controls], images)
        return uses, {use.image: image for use, image in zip(uses, images, strict=False)}

    def _keys(
        self, key: RecordingKey, prompts: Prompts, loras: Sequence[Lora]
    ) -> list[RecordingKey]:
        """Of a client's registration."""
        parts: dict[str, Any] = {"recorder": self._recorder, "store": self._store}
        zero = self._manifest.zero_negative
        return keys_of(key, prompts, loras, **parts, words=self._words(), zero_negative=zero)

    @contextmanager
    def _loaded(self, key: RecordingKey) -> Iterator[None]:
        """Keep a key's ControlNets loaded meanwhile."""
        names = {control.name for control in key.controls}
        if not names:
            yield
            return
        self._residency.take(names)
        try:
            yield
        finally:
            self._residency.give_back(names)

    def _list(self, inputs: Inputs) -> dict[str, Any]:
        recordings: dict[str, list[dict[str, Any]]] = {}
        for each in self._store.recordings():
            if each.key.bundle == self._manifest.digest:
                described = describe(each) | {"prompt": each.key.text, "loras": loras_of(each.key)}
                described["controls"] = controls_of(each.key)
                recordings.setdefault(each.key.template, []).append(described)
        templates = []
        for identity in self._store.pictures.known():
            height, width = self._store.pictures.size_of(identity)
            mine = {"recordings": recordings.get(identity, [])}
            templates.append({"template": identity, "width": width, "height": height} | mine)
        counters = self._board.cache
        reads = counters["hits"] + counters["misses"]
        rate = round(counters["hits"] / reads, 4) if reads else None
        return {
            "templates": templates,
            "disk": {"bytes": self._bytes, "budget": self._settings.disk},
            "memory": {**counters, "budget": self._settings.memory, "hit_rate": rate},
        }

    def _evict(self, inputs: Inputs) -> dict[str, Any]:
        identity = text_of(inputs, "TEMPLATE", "", 100)
        if not self._store.pictures.holds(identity):
            raise unknown(identity)
        return {"template": identity, "bytes": self._store.evict(identity)}

    def _picture(self, inputs: Inputs) -> list[pb.TensorHandle]:
        identity = text_of(inputs, "TEMPLATE", "", 100)
        picture = find_picture(self._store.pictures, identity)
        height, width = picture.shape[:2]
        return _answered({"template": identity, "width": width, "height": height}, picture)

    def _record_when_idle(self) -> None:
        """The thread: records what is wanted, one after the other, and gives way to requests."""
        pause, tick, since = IDLE_S, -1, 0.0
        while not self._ending.wait(pause):
            pause = IDLE_S
            try:
                self._release()
                self._look_at_disk()
                if self._board.tick != tick:
                    tick, since = self._board.tick, time.monotonic()
                if not self._board.running():
                    self._record_wanted(again=time.monotonic() - since < ONCE_IDLE_S)
            except Exception as error:
                pb.log(f"what edits want cannot be recorded: {error!r}")
                pause = AFTER_ERROR_S

    def _release(self) -> None:
        """Give the networks' memory back if they have not been used for long."""
        unused_s = time.monotonic() - self._recorded
        if (
            "_recorder" in vars(self)
            and unused_s > RELEASE_S
            and self._busy.acquire(blocking=False)
        ):
            try:
                self._recorder.release()
            finally:
                self._busy.release()

    def _look_at_disk(self) -> None:
        if time.monotonic() - self._measured > DISK_S:
            self._measured = time.monotonic()
            self._metrics.set("template_bytes", self._bytes, tier="disk")
            self._store.sweep_texts()

    @property
    def _bytes(self) -> int:
        """Of all recordings."""
        return sum(recording.bytes for recording in self._store.recordings())

    def _record_wanted(self, *, again: bool = False) -> None:
        """The latest, unless this process or the other one is recording; nobody waits for it.
        `again`: the latest that has been wanted more than once.
        """
        for key in self._store.notes.keys(self._manifest.digest, again=again)[:1]:
            if not self._busy.acquire(blocking=False):
                return
            try:
                if not self._recorder.attempt(key, between=partial(self._give_way, key)):
                    return
            except TesseraError as error:
                pb.log(str(error))
            except Exception as error:
                pb.log(f"template {key.template} could not be recorded: {error!r}")
            finally:
                self._recorded = time.monotonic()
                self._busy.release()
            self._store.notes.remove(key)

    def _give_way(self, key: RecordingKey) -> None:
        """Wait while something is denoised and nobody has come to wait for this recording."""
        until = time.monotonic() + GIVE_WAY_S
        while self._board.denoising() and time.monotonic() < until:
            waited_for = self._busy.waited_for() or self._store.waited_for(key)
            if waited_for or self._ending.wait(GIVE_WAY_LOOK_S):
                return


def _check_copies(inputs: Inputs) -> None:
    """Several copies are a fleet's: it asks as many workers for one each.

    Raises:
        InvalidInput: COPIES is not 1.
    """
    copies = int(scalar_of(inputs["COPIES"])) if "COPIES" in inputs else 1
    if copies != 1:
        raise InvalidInput("COPIES", copies, "1 by a single server; more by a fleet")


def _answered(result: dict[str, Any], picture: Array) -> list[pb.TensorHandle]:
    return [pb.tensor("RESULT", json.dumps(result).encode()), pb.tensor("IMAGE", picture)]
