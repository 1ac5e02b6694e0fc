"""Mixed traffic for fleets of real workers: edits of templates, LoRA sets, ControlNets, and plain
pictures. What a request found on its worker is read from its INFO.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from bench.server import DEMO_BUNDLE, SHARED, Server, serving
from bench.workloads import zipf_rank
from tessera_build.demo.controls import CONTROLS
from tessera_build.demo.draw import render
from tessera_build.demo.scenes import Scene, describe, held_out_scenes
from tessera_client import Client, Control, Info, Lora

LORA_SETS = (
    ("outline",),
    ("halved",),
    ("night",),
    ("outline", "night"),
    ("halved", "night"),
    ("halved", "outline"),
)
KINDS = {"edit": 0.5, "LoRAs": 0.25, "ControlNet": 0.15, "plain": 0.1}
"""Share of the requests."""
WAITED_MS = 20.0
"""A request that waited no longer for recordings or a ControlNet has found them."""
_SEED = 7


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        kind: a key of `KINDS`.
        at: seconds after the first request at which it is sent, if a slot is free.
        template: number of the edited picture.
        loras: names.
        control: name of a ControlNet.
        side: of an edit's square mask, in pixels.
    """

    kind: str
    at: float = 0.0
    template: int | None = None
    loras: tuple[str, ...] = ()
    control: str = ""
    side: int = 0

    @property
    def needs(self) -> str:
        """What it looks for on a worker."""
        if self.template is not None:
            return f"template {self.template + 1}"
        return " + ".join(self.loras) or self.control or "nothing"


@dataclass(frozen=True)
class Served:
    """A request that was served.

    Attributes:
        began: seconds after the first request at which it was sent.
        took_ms: from there to its picture.
    """

    asked: Asked
    job: str
    info: Info
    began: float
    took_ms: float

    @property
    def found(self) -> bool:
        """Whether its worker had what it needs: nothing was read, loaded or refitted. INFO does not
        tell of recordings that were made for it, see `with_all`.
        """
        info = self.info
        waited = max(info.cache_load_ms, info.control_load_ms) > WAITED_MS
        dense = self.asked.template is not None and info.mode == "dense"
        return not (waited or dense or info.switches)


def traffic(
    count: int,
    *,
    templates: int,
    lora_sets: int = len(LORA_SETS),
    controls: int = len(CONTROLS),
    zipf: float = 1.0,
    seed: int = 1,
) -> list[Asked]:
    """Requests in a random order. Of each kind of thing, the first ones are more popular."""
    rng = random.Random(seed)
    return [_one(rng, templates, lora_sets, controls, zipf) for _ in range(count)]


def spread(asked: Sequence[Asked], rate: float, seed: int = 1) -> list[Asked]:
    """The same requests at random times, so many a second on average."""
    rng, now, out = random.Random(seed), 0.0, []
    for each in asked:
        now += rng.expovariate(rate)
        out.append(replace(each, at=now))
    return out


def play(
    urls: Sequence[str],
    asked: Sequence[Asked],
    *,
    steps: int,
    at_once: int,
    mode: str = "sparse",
    first_template: int = 0,
) -> list[Served]:
    """Send requests, and wait for their pictures.

    Args:
        urls: where they go, in turns.
        asked: the requests.
        steps: of each.
        at_once: how many are under way at most.
        mode: of edits.
        first_template: number of the scene that template 0 shows: others have not been seen before.
    """
    scenes = held_out_scenes(first_template + 1 + max((a.template or 0) for a in asked))
    pictures = [_picture(scene) for scene in scenes[first_template:]]
    hints = {name: Image.fromarray(make(scenes[0])) for name, make in CONTROLS.items()}
    prompt = describe(scenes[0])
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(at_once) as pool:
        clients = [stack.enter_context(Client(url, timeout=300, retries=0)) for url in urls]
        start = time.monotonic()

        def one(number: int, each: Asked) -> Served:
            time.sleep(max(0.0, each.at - (time.monotonic() - start)))
            client, job = clients[number % len(clients)], uuid.uuid4().hex
            began = time.monotonic()
            if each.template is not None:
                mask = _square(each.side)
                options = {"steps": steps, "seed": _SEED, "mode": mode, "job_id": job}
                result = client.edit(pictures[each.template], mask, prompt, **options)  # type: ignore[arg-type]
            else:
                result = client.generate(
                    prompt,
                    steps=steps,
                    seed=_SEED,
                    job_id=job,
                    loras=[Lora(name) for name in each.loras],
                    controls=[Control(each.control, hints[each.control])] if each.control else [],
                )
            took = 1e3 * (time.monotonic() - began)
            return Served(each, job, result.info, began - start, took)

        return list(pool.map(one, range(len(asked)), asked))


def with_all(served: Sequence[Served]) -> set[str]:
    """Jobs that found all that they needed. The first edit of a template on a worker did not: the
    recording was made for it.

    Args:
        served: everything since templates were evicted.
    """
    recorded: set[tuple[str, int | None]] = set()
    found = set()
    for each in sorted(served, key=lambda s: s.began):
        here = (each.info.worker, each.asked.template)
        if each.found and (each.asked.template is None or here in recorded):
            found.add(each.job)
        recorded.add(here)
    return found


@contextlib.contextmanager
def workers(folder: Path, count: int, *flags: str) -> Iterator[list[Server]]:
    """Run so many `tessera-serve` on the demo bundle, each with one thread, that have recorded a
    template before.

    Args:
        folder: for logs and templates.
        count: how many.
        flags: further ones of `tessera-serve`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(count) as pool:

        def start(number: int) -> Server:
            own = f"--templates={folder / f'templates-{number}'}"
            log = folder / f"worker-{number}.log"
            server = stack.enter_context(
                serving(DEMO_BUNDLE, log, own, SHARED, "--threads=1", *flags)
            )
            with Client(server.http, timeout=120) as client:  # the first recording loads libraries
                noise = np.random.default_rng(number).integers(0, 256, (128, 128, 3), np.uint8)
                client.evict_template(client.register_template(noise, steps=1).template)
            return server

        yield list(pool.map(start, range(count)))


def address(server: Server) -> dict[str, str]:
    """A server as fleet.yaml names it."""
    return {"grpc": f"127.0.0.1:{server.grpc_port}", "http": f"127.0.0.1:{server.http_port}"}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them is."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _one(rng: random.Random, templates: int, lora_sets: int, controls: int, zipf: float) -> Asked:
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    if kind == "edit":
        return Asked(kind, template=zipf_rank(templates, zipf, rng), side=rng.choice((24, 40, 56)))
    if kind == "LoRAs":
        return Asked(kind, loras=LORA_SETS[zipf_rank(lora_sets, zipf, rng)])
    if kind == "ControlNet":
        return Asked(kind, control=list(CONTROLS)[zipf_rank(controls, 0.0, rng)])
    return Asked(kind)


def _picture(scene: Scene) -> Image.Image:
    return Image.fromarray(np.rint(255 * render(scene)).astype(np.uint8))


def _square(side: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    mask = np.zeros((128, 128), np.uint8)
    start = (128 - side) // 2
    mask[start : start + side, start : start + side] = 255
    return mask
