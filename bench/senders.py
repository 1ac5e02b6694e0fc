"""Ways to send a trace's requests: the SDK, the gateway's KServe port, and OpenAI's Images API."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.edit_quality import square
from bench.lora_files import write_loras
from bench.server import DEMO_BUNDLE, Server, serving
from bench.trace import Asked
from tessera.contract import Info
from tessera_build.demo.controls import CONTROLS
from tessera_build.demo.draw import render
from tessera_build.demo.scenes import describe, held_out_scenes, sample_scene
from tessera_client import Client, Control, Lora, Result
from tests.samples.gateways import gateway

SIDE = 128
GUIDANCE = 4.0
Send = Callable[[Asked], Info]
"""Sends a request and waits for its picture."""


@dataclass(frozen=True)
class Things:
    """What a trace's ranks stand for.

    Attributes:
        loras, controls: names.
        pictures: templates.
        hint: the control image.
    """

    loras: tuple[str, ...]
    controls: tuple[str, ...]
    pictures: tuple[Any, ...]
    hint: Image.Image

    def prompt(self, rank: int) -> str:
        """The description of a scene."""
        return describe(sample_scene(random.Random(f"scene {rank}")))

    def mask(self, ratio: float) -> Any:
        """A square of this share of the picture; one pixel at least."""
        return square((SIDE // 2, SIDE // 2), max(ratio, SIDE**-2.0))


def prepare(folder: Path, loras: int, templates: int) -> Things:
    """What requests need, beside a server: LoRAs in `folder/adapters`, pictures, an outline."""
    names = tuple(f"lora-{number:02}" for number in range(loras))
    (folder / "adapters").mkdir(parents=True, exist_ok=True)
    missing = [n for n in names if not (folder / "adapters" / f"{n}.safetensors").exists()]
    if missing:
        write_loras(folder / "adapters", names, rank=8)
    scenes = held_out_scenes(templates + 1)
    pictures = tuple(np.rint(255 * render(scene)).astype(np.uint8) for scene in scenes)
    first = next(iter(CONTROLS.values()))
    hint = Image.fromarray(first(scenes[-1]))
    return Things(names, tuple(CONTROLS), pictures[:-1], hint)


@contextlib.contextmanager
def tessera(
    things: Things,
    requests: Sequence[Asked],
    folder: Path,
    threads: int,
    *flags: str,
    name: str = "server",
    program: Sequence[str] = ("tessera.serve",),
) -> Iterator[Server]:
    """A server of the demo bundle that has recorded what the trace edits.

    Args:
        things: what the trace's ranks stand for.
        requests: the trace.
        folder: of LoRAs, which several servers may share, and of what is the server's own.
        threads: of an engine call.
        flags: further ones of `tessera-serve`.
        name: of the server's own folder, with its log and recordings. It is emptied, and the
            recordings are removed at the end.
        program: see `serving`.
    """
    home = folder / name
    shutil.rmtree(home, ignore_errors=True)  # recordings of another run would be hits
    home.mkdir(parents=True)
    own = (f"--threads={threads}", f"--adapters={folder / 'adapters'}", *flags)
    try:
        with serving(DEMO_BUNDLE, home / "log", *own, program=program) as server:
            _warm(server, things, requests)
            yield server
    finally:
        shutil.rmtree(home / "templates", ignore_errors=True)


def _warm(server: Server, things: Things, requests: Sequence[Asked]) -> None:
    """Record what a trace edits, and load all ControlNets."""
    with Client(server.grpc) as client:
        edits = {(r.template, r.steps) for r in requests if r.template is not None}
        for template, steps in sorted(edits):
            client.register_template(things.pictures[template], steps=steps, timeout=600)
        for control in things.controls:
            client.generate(things.prompt(0), steps=1, controls=[Control(control, things.hint)])


@contextlib.contextmanager
def ways(server: Server, things: Things) -> Iterator[dict[str, Send]]:
    """How requests are sent, by name; with a gateway in front of the server."""
    with (
        gateway(server.grpc, server.log.with_name("gateway"), f"--kserve={server.http}") as running,
        by_client(server.grpc, things) as sdk,
        by_client(running.url, things) as kserve,
    ):
        yield {"sdk": sdk, "kserve": kserve, "openai": by_openai(running.port, things)}


@contextlib.contextmanager
def by_client(url: str, things: Things, mode: str = "auto") -> Iterator[Send]:
    """Sends by the SDK; edits in a mode."""
    with Client(url, timeout=900, retries=0) as client:
        yield lambda asked: drawn(client, things, asked, mode).info


def drawn(client: Client, things: Things, asked: Asked, mode: str = "auto") -> Result:
    """Have a server draw a request; an edit in a mode."""
    prompt = things.prompt(asked.prompt)
    options: dict[str, Any] = {
        "steps": asked.steps,
        "seed": asked.seed,
        "guidance": GUIDANCE,
        "loras": [Lora(things.loras[i]) for i in asked.loras],
        "controls": [Control(things.controls[i], things.hint) for i in asked.controls],
    }
    if asked.template is None:
        return client.generate(prompt, **options)
    picture, mask = things.pictures[asked.template], things.mask(asked.mask)
    return client.edit(picture, mask, prompt, mode=mode, **options)


def by_openai(port: int, things: Things) -> Send:
    """Sends JSON to OpenAI's Images API of a gateway."""

    def send(asked: Asked) -> Info:
        own: dict[str, Any] = {
            "steps": asked.steps,
            "seed": asked.seed,
            "guidance": GUIDANCE,
            "loras": [{"name": things.loras[i]} for i in asked.loras],
            "controls": [
                {"name": things.controls[i], "image": _data_url(things.hint)}
                for i in asked.controls
            ],
        }
        body: dict[str, Any] = {"prompt": things.prompt(asked.prompt), "tessera": own}
        path = "generations"
        if asked.template is not None:
            picture = Image.fromarray(things.pictures[asked.template])
            body["images"] = [{"image_url": _data_url(picture)}]
            own["mask_image"] = _data_url(Image.fromarray(things.mask(asked.mask)))
            path = "edits"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/v1/images/{path}", json.dumps(body), headers)
            answer = connection.getresponse()
            content = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {content}")
        info = content["data"][0]["tessera"]["info"]
        return Info(**{f.name: info[f.name] for f in fields(Info) if f.name in info})

    return send


def _data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
