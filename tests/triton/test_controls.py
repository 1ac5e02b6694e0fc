"""ControlNets on the real server, against diffusers' ControlNet pipelines on the same weights."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from bench.server import DEMO_CHECKPOINT
from tessera.errors import InvalidInput
from tessera.manifest import read_manifest
from tessera.shared.processes import model_processes
from tessera_client import Client, Control, Lora
from tests.samples.images import noise_blocks
from tests.samples.jobs import in_company
from tests.samples.servers import ended_whole

CONTROLNETS = DEMO_CHECKPOINT.parent / "controlnets"
LORAS = DEMO_CHECKPOINT.parent / "loras"
PROMPT = "a large blue star at the top on a green background"


SHORT: dict[str, Any] = {"steps": 6, "guidance": 4.0, "scheduler": "euler"}
EDGES = noise_blocks(11)
NAMES = ("edges", "silhouette")


def apart(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def random_request(rng: random.Random) -> dict[str, Any]:
    width, height = rng.choice([64, 96, 128]), rng.choice([64, 128])
    controls = []
    for _ in range(rng.randrange(4)):
        start, end = sorted(rng.sample([0.0, 0.2, 0.5, 0.8, 1.0], 2))
        controls.append(
            Control(
                rng.choice(NAMES),
                image=noise_blocks(rng.randrange(100), width, height),
                scale=rng.choice([0.3, 1.0, -0.5]),
                start=start,
                end=end,
            )
        )
    return {
        "seed": rng.randrange(1000),
        "steps": rng.randint(3, 9),
        "guidance": rng.choice([1.0, 4.0]),
        "width": width,
        "height": height,
        "controls": controls,
    }


def test_twenty_in_flight_with_other_controlnets_each_equal_their_solo_runs(
    http_client: Client,
) -> None:
    rng = random.Random(6)
    wanted = [random_request(rng) for _ in range(20)]
    assert len({tuple(c.name for c in w["controls"]) for w in wanted}) >= 6
    alone = [http_client.generate(PROMPT, **w).image for w in wanted]
    with in_company(http_client, 2), ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda w: http_client.generate(PROMPT, **w), wanted))
    for one, other in zip(alone, together, strict=True):
        assert apart(one, other.image) <= 1
    assert max(r.info.mean_batch for r in together) > 2
    guided = [r for r, w in zip(together, wanted, strict=True) if w["controls"]]
    assert all(r.info.control_ticks <= r.info.ticks for r in guided)
    assert sum(r.info.control_ticks for r in guided) > 40


@pytest.mark.filterwarnings("ignore")
def test_with_a_lora_pictures_equal_diffusers(http_client: Client) -> None:
    controls = [Control("edges", image=EDGES, scale=0.8)]
    loras = [Lora("night", 0.7)]
    kind = diffusers.StableDiffusionControlNetPipeline
    network = diffusers.ControlNetModel.from_pretrained(CONTROLNETS / "edges")
    pipe = kind.from_pretrained(DEMO_CHECKPOINT, controlnet=network)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(LORAS / "night.safetensors"), adapter_name="night")
    pipe.set_adapters(["night"], adapter_weights=[0.7])
    expected = pipe(
        PROMPT,
        image=EDGES,
        controlnet_conditioning_scale=0.8,
        num_inference_steps=SHORT["steps"],
        guidance_scale=SHORT["guidance"],
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]
    served = http_client.generate(PROMPT, seed=5, controls=controls, loras=loras, **SHORT)
    assert apart(served.image, expected) <= 2
    assert apart(served.image, http_client.generate(PROMPT, seed=5, loras=loras, **SHORT).image) > 9


def test_a_sparse_edit_follows_its_controlnet(http_client: Client) -> None:
    """The sparse edit with a ControlNet is the dense one with it, up to what a template's cache
    leaves out, and another than the one without.
    """
    template = http_client.generate("a large red circle in the center on a blue background", seed=3)
    http_client.register_template(template.image, steps=20, scheduler="euler")
    wanted: dict[str, Any] = {"seed": 4, "steps": 20, "guidance": 4.0, "scheduler": "euler"}
    where = (32, 32, 64, 64)
    y, x = np.mgrid[:128, :128]
    disc = np.where((x - 64) ** 2 + (y - 64) ** 2 < 24**2, 255, 0).astype(np.uint8)
    shape = Image.fromarray(disc).convert("RGB")
    controls = [Control("silhouette", image=shape, end=0.8)]
    pictures = {
        (mode, bool(use)): http_client.edit(
            template.image, where, "yellow on a blue background", mode=mode, controls=use, **wanted
        )
        for mode in ("sparse", "dense")
        for use in (controls, [])
    }
    sparse = pictures["sparse", True]
    assert sparse.info.mode == "sparse"
    assert sparse.info.control_ticks == 16
    inside = np.s_[32:96, 32:96]

    def distance(one: tuple[str, bool], other: tuple[str, bool]) -> float:
        first, second = (np.asarray(pictures[k].image, float)[inside] for k in (one, other))
        return float(np.abs(first - second).mean())

    control = distance(("dense", True), ("dense", False))
    assert control > 5, "no effect would prove nothing"
    assert distance(("sparse", True), ("dense", True)) < control / 2
    assert distance(("sparse", True), ("sparse", False)) > control / 2
    assert sparse.info.recorded_controls is False
    prompt = "yellow on a blue background"
    recorded = http_client.register_template(
        template.image, steps=20, scheduler="euler", prompt=prompt, controls=controls
    )
    assert [(c["name"], c["last"]) for c in recorded.controls] == [("silhouette", 16)]
    again = http_client.edit(
        template.image,
        where,
        prompt,
        mode="sparse",
        controls=controls,
        **wanted,
    )
    assert (again.info.recording, again.info.recorded_controls) == ("own", True)
    pictures["recorded", True] = again
    assert distance(("recorded", True), ("sparse", True)) > 0
    assert distance(("recorded", True), ("dense", True)) < control / 2


def test_residency(bundle: Path, tmp_path: Path) -> None:
    """With room for one, two ControlNets take turns, and requests without any go on meanwhile; the
    trace shows one beside the encoder half.
    """
    manifest = read_manifest(bundle)
    room = max(manifest.controlnet_bytes(name) for name in NAMES) * 1.2 / 1e9
    flags = (f"--control-memory={room}", f"--trace={tmp_path / 'trace.json'}")
    edges, silhouette = (Control(name, image=EDGES) for name in NAMES)
    with (
        ended_whole(bundle, tmp_path / "log", *flags) as server,
        Client(server.http, timeout=300) as client,
    ):

        def draw(*controls: Control) -> Any:
            return client.generate(PROMPT, seed=1, controls=controls, **SHORT)

        def loaded() -> list[bool]:
            return [server.ready(f"controlnet_{name}") for name in NAMES]

        def edges_process() -> list[int]:
            (child,) = psutil.Process(server.process.pid).children()
            found = model_processes(child.pid).items()
            return [pid for pid, name in found if name == "controlnet_edges"]

        def always_ready(drawing: Future[Any]) -> bool:
            while not drawing.done():
                if not server.ready():
                    return False
            return True

        assert loaded() == [False, False]
        first = draw(edges)
        assert loaded() == [True, False]
        assert first.info.control_load_ms > 100
        loaded_once = edges_process()
        draw(edges)
        assert edges_process() == loaded_once, "it was loaded again"
        with ThreadPoolExecutor(1) as pool:
            drawing = pool.submit(draw, silhouette)
            assert always_ready(drawing), "a load balancer would have taken the server away"
            assert drawing.result().info.control_load_ms > 100
        assert loaded() == [False, True]
        again = draw(edges)
        assert again.image.tobytes() == first.image.tobytes()
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(draw, c) for c in (edges, silhouette) * 2]
            plain = [draw().info for _ in range(4)]
            assert not all(job.done() for job in jobs), "they were over before the plain ones"
            guided = [job.result().info for job in jobs]
        assert max(info.last_tick for info in plain) < max(info.first_tick for info in guided)
        with pytest.raises(InvalidInput, match="CONTROLS names edges, silhouette; accepted: C"):
            draw(edges, silhouette)
        assert draw().info.control_load_ms == 0
    events = json.loads((tmp_path / "trace.json").read_text().rstrip().rstrip(",") + "]")
    asked = [e for e in events if e["name"] == "ControlNet edges"]
    halves = [e for e in events if e["name"] == "encoder half"]
    assert any(
        a["ts"] < h["ts"] + h["dur"] and h["ts"] < a["ts"] + a["dur"] for a in asked for h in halves
    )
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} >= {"denoise", "controlnet_edges"}


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--place=edges=gpu", "--place is 'edges=gpu'; accepted: NAME=PLACE, where"),
        ("--place=depth=cpu", "--place names 'depth'; accepted: edges, silhouette, text_encoders"),
        ("--pin=depth", "--pin names the ControlNet 'depth'; accepted: edges, silhouette"),
        ("--control-memory=inf", "inf GB is no size; accepted: numbers from 0"),
        ("--trace=/", "--trace / cannot be written"),
    ],
)
def test_bad_flags(bundle: Path, flag: str, sentence: str) -> None:
    line = [sys.executable, "-m", "tessera.serve", str(bundle), flag]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert sentence in ended.stderr.replace("\n", " ")
