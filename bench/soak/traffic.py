"""What the clients of a soak ask for, and what became of it."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.contract.limits import PRIORITIES
from tessera.errors import (
    Cancelled,
    InvalidInput,
    TimedOut,
    Unavailable,
    UnknownJob,
)
from tessera_client import Client, Control, Lora, Result

Picture = npt.NDArray[np.uint8]
Ask = Callable[..., Result]

PATIENCE_S = 180.0
"""A request without an answer for so long hangs: a restart of the server takes a tenth of it."""
NEAR = 2
"""Largest difference from the picture drawn alone, of 255: batches sum in another order."""
_PROMPT = "a large red circle in the center"
_PAUSE_S = 0.3


@dataclass(frozen=True)
class Happened:
    """What became of a request.

    Attributes:
        at: time of its end, as `time.monotonic` has it.
        kind: a key of `PICTURES` or `OTHERS`.
        outcome: "right" as it should be, "unavailable" said so in a sentence, as requests in a
            process that was killed do; "denser": a step's recording was missing or damaged, so that
            INFO tells of fewer sparse steps, and only what lies outside of the mask is compared;
            "wrong" picture, "hung", "unexpected" error.
        seconds: from call to answer.
        note: what is wrong.
    """

    at: float
    kind: str
    outcome: str
    seconds: float
    note: str = ""


_CORRUPTED = "corrupted on its way"
FAULTY = ("wrong", "hung", "unexpected")
"""Outcomes that must not be."""


def _picture(seed: int) -> Picture:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    return np.kron(coarse, np.ones((16, 16, 1), np.uint8))


def _mask(top: int, left: int, side: int) -> Picture:
    mask = np.zeros((128, 128), np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


EDITED: Mapping[str, tuple[int, int]] = {
    "sparse edit": (1, 32),
    "another mask": (1, 64),
    "another picture": (2, 40),
    "dense edit": (2, 40),
}
"""Of the edits in `PICTURES`: the seed of what is edited, and the side of the mask in pixels."""


def edited(name: str) -> tuple[Picture, Picture]:
    """What is edited by one of `PICTURES`, and the mask."""
    template, side = EDITED[name]
    return _picture(template), _mask(24, 32, side)


def _edit(name: str, **options: Any) -> Ask:
    image, mask = edited(name)
    return lambda client, **more: client.edit(image, mask, _PROMPT, **options, **more)


def _draw(**options: Any) -> Ask:
    return lambda client, **more: client.generate(_PROMPT, **options, **more)


PICTURES: Mapping[str, Ask] = {
    "plain": _draw(steps=8, seed=1),
    "long": _draw(steps=40, seed=2),
    "no guidance": _draw(steps=8, seed=3, guidance=1.0),
    "LoRA": _draw(steps=8, seed=4, loras=[Lora("outline")]),
    "another LoRA": _draw(steps=8, seed=5, loras=[Lora("night")]),
    "two LoRAs": _draw(steps=8, seed=6, loras=[Lora("outline", 0.5), Lora("night")]),
    "ControlNet": _draw(steps=8, seed=7, controls=[Control("edges", _picture(9))]),
    "sparse edit": _edit("sparse edit", steps=8, seed=8, mode="sparse"),
    "another mask": _edit("another mask", steps=8, seed=9, mode="sparse"),
    "another picture": _edit("another picture", steps=8, seed=10, mode="sparse", strength=0.7),
    "dense edit": _edit("dense edit", steps=8, seed=11, mode="dense"),
}
"""Requests for pictures, each with the same answer every time."""


def _cancelled(client: Client, rng: random.Random) -> None:
    job = uuid.uuid4().hex
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(client.generate, _PROMPT, steps=900, job_id=job)
        time.sleep(rng.uniform(0.0, 0.6))
        _until_known(client, job, drawn.done)
        try:
            drawn.result()
        except Cancelled:
            return
        raise AssertionError("a cancelled job was drawn to its end")


def _until_known(client: Client, job: str, ended: Callable[[], bool]) -> None:
    while not ended():
        try:
            client.cancel(job)
            return
        except UnknownJob:
            time.sleep(0.02)


def _timed_out(client: Client, rng: random.Random) -> None:
    try:
        client.generate(_PROMPT, steps=1000, timeout=rng.uniform(0.1, 1.0))
    except TimedOut:
        return
    raise AssertionError("a request outlived its timeout")


def _refused(client: Client, rng: random.Random) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.generate(_PROMPT, steps=0),
        lambda: client.generate(_PROMPT, width=1000003),
        lambda: client.generate(_PROMPT, scheduler="none"),
        lambda: client.generate(_PROMPT, loras=[Lora("nobody")]),
        lambda: client.generate(_PROMPT, guidance=float("nan")),
        lambda: client.edit(_picture(1), np.zeros((128, 128), np.uint8), _PROMPT),
        lambda: client.edit(None, _mask(0, 0, 32), _PROMPT, template="f" * 64),
    ]
    try:
        rng.choice(calls)()
    except (InvalidInput, ValueError):
        return
    raise AssertionError("bad input was accepted")


def _unknown(client: Client, rng: random.Random) -> None:
    try:
        client.status(f"nobody-{rng.random()}")
    except UnknownJob:
        return
    raise AssertionError("a job that never was has a status")


def _recorded(client: Client, rng: random.Random) -> None:
    """A template that no edit uses, so that every process of `templates` records now and then."""
    steps = rng.randint(2, 6)
    done = client.register_template(_picture(rng.randrange(100, 10**6)), steps=steps)
    if done.steps != steps:
        raise AssertionError(f"{done.steps} steps are recorded, not {steps}")
    with contextlib.suppress(InvalidInput):  # a full disk keeps nothing
        client.evict_template(done.template)


OTHERS: Mapping[str, Callable[[Client, random.Random], None]] = {
    "cancelled": _cancelled,
    "timed out": _timed_out,
    "refused": _refused,
    "unknown job": _unknown,
    "recorded": _recorded,
}
"""Requests that are to end otherwise: without an error they have."""


@dataclass(frozen=True)
class Expected:
    """A picture drawn with nothing beside it, and how many of its steps were sparse."""

    picture: Picture
    sparse: int


def alone(url: str) -> dict[str, Expected]:
    """Each of `PICTURES`, drawn with nothing beside it."""
    expected = {}
    with Client(url, timeout=PATIENCE_S, retries=0) as client:
        for name, ask in PICTURES.items():
            ask(client)  # an edit may still be without its recording
            result = ask(client)
            expected[name] = Expected(np.asarray(result.image), result.info.sparse_ticks)
    return expected


def ask_on(
    url: str,
    threads: int,
    seed: int,
    expected: Mapping[str, Expected],
    stop: Event,
    told: Queue[Happened],
    wrong: Path,
) -> None:
    """Body of a client process: requests at random, one after another in each thread.

    Args:
        url: the server.
        threads: requests under way at a time.
        seed: of the choices.
        expected: what `alone` gave.
        stop: ends it, when the requests that are under way have ended.
        told: gets everything that happened.
        wrong: folder of wrong pictures, whose files say all of INFO.
    """

    def work(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        with Client(url, timeout=PATIENCE_S, retries=0) as client:
            while not stop.is_set():
                name = rng.choice([*PICTURES, *PICTURES, *OTHERS])
                happened = _one(client, name, rng, expected, wrong)
                told.put(happened)
                if happened.outcome == "unavailable":
                    time.sleep(_PAUSE_S)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()


def _one(
    client: Client,
    name: str,
    rng: random.Random,
    expected: Mapping[str, Expected],
    wrong: Path,
) -> Happened:
    began = time.monotonic()
    outcome, note = "right", ""
    try:
        if name in OTHERS:
            OTHERS[name](client, rng)
        else:
            priority = rng.randint(1, PRIORITIES)
            result = PICTURES[name](client, priority=priority)
            outcome, note = compared(name, result, expected[name])
            if outcome == "wrong":
                result.save(wrong / f"{result.info.job_id}.png")
                note += f", job {result.info.job_id}"
    except Unavailable as error:
        outcome, note = "unavailable", str(error) if _CORRUPTED in str(error) else ""
    except TimedOut as error:
        outcome, note = "hung", str(error)
    except Exception as error:
        outcome, note = "unexpected", f"{type(error).__name__}: {error}"
    now = time.monotonic()
    return Happened(now, name, outcome, now - began, note)


def compared(name: str, result: Result, expected: Expected) -> tuple[str, str]:
    """Outcome and note of a picture.

    Args:
        name: a key of `PICTURES`.
        result: what was answered.
        expected: what was answered alone.
    """
    found = np.asarray(result.image, np.int16)
    if result.info.sparse_ticks < expected.sparse:
        image, mask = edited(name)
        off = int(np.abs(found - image)[mask == 0].max())
        return ("wrong", f"{off}/255 outside of the mask") if off else ("denser", "")
    off = int(np.abs(found - expected.picture).max())
    return ("wrong", f"{off}/255 from the picture drawn alone") if off > NEAR else ("right", "")
