"""ControlNets on the real server, against diffusers' ControlNet pipelines on the same weights."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from bench.server import DEMO_CHECKPOINT, plain_serving, serving
from tessera.contract import SCHEDULERS
from tessera.errors import InvalidInput
from tessera.manifest import read_manifest
from tessera.serve.tritonserver import model_repository
from tessera.shared.processes import model_processes
from tessera.variants import VARIANTS
from tessera_client import Client, Control, Lora
from tests.samples.bundles import Small

CONTROLNETS = DEMO_CHECKPOINT.parent / "controlnets"
LORAS = DEMO_CHECKPOINT.parent / "loras"
PROMPT = "a large blue star at the top on a green background"


def control_picture(seed: int, width: int = 128, height: int = 128) -> Image.Image:
    """Random blocks: sharp edges, every grey and colour."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


USES: dict[str, list[Control]] = {
    "one": [Control("edges", image=control_picture(1))],
    "weaker": [Control("edges", image=control_picture(2), scale=0.4)],
    "window": [Control("edges", image=control_picture(3), start=0.25, end=0.75)],
    "two": [
        Control("edges", image=control_picture(4), scale=0.6, end=0.5),
        Control("edges", image=control_picture(5), scale=-0.3, start=0.2),
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_pictures_equal_those_of_diffusers_controlnet_pipelines(
    small: Callable[[str], Small], variant: str, tmp_path: Path
) -> None:
    made = small(variant)
    with (
        serving(made.bundle, tmp_path / "log", "--threads=2") as server,
        Client(server.http, timeout=120) as client,
    ):
        plain = np.asarray(client.generate(PROMPT, seed=7).image, np.int16)
        for name, controls in USES.items():
            result = client.generate(PROMPT, seed=7, controls=controls)
            served = np.asarray(result.image, np.int16)
            difference = served - by_diffusers(made, controls, seed=7)
            assert np.abs(difference).max() <= 2, name
            assert np.abs(difference).mean() <= 0.1, name
            assert np.abs(served - plain).max() > 10, f"{name}: the control changed nothing"
            assert [c["name"] for c in result.info.controls] == [c.name for c in controls]


def by_diffusers(made: Small, controls: Sequence[Control], *, seed: int) -> Any:
    defaults = read_manifest(made.bundle).defaults
    kind = getattr(
        diffusers, VARIANTS[made.variant].pipeline.replace("Pipeline", "ControlNetPipeline")
    )
    off = {} if VARIANTS[made.variant].pooled else {"safety_checker": None}
    several = len(controls) > 1
    pipe = kind.from_pretrained(
        str(made.checkpoint),
        controlnet=[made.control] * len(controls) if several else made.control,
        dtype=torch.float32,
        **off,
    )
    pipe.set_progress_bar_config(disable=True)
    spec = SCHEDULERS[defaults.scheduler]
    scheduler = getattr(diffusers, spec.cls)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **dict(spec.settings))
    values: dict[str, Any] = {
        "image": [c.image for c in controls],
        "controlnet_conditioning_scale": [c.scale for c in controls],
        "control_guidance_start": [c.start for c in controls],
        "control_guidance_end": [c.end for c in controls],
    }
    result = pipe(
        PROMPT,
        num_inference_steps=defaults.steps,
        guidance_scale=defaults.guidance,
        width=defaults.width,
        height=defaults.height,
        generator=torch.Generator("cpu").manual_seed(seed),
        **(values if several else {k: v[0] for k, v in values.items()}),
    )
    return np.asarray(result.images[0], np.int16)


SHORT: dict[str, Any] = {"steps": 6, "guidance": 4.0, "scheduler": "euler"}
EDGES = control_picture(11)
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
                image=control_picture(rng.randrange(100), width, height),
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
    with ThreadPoolExecutor(20) as pool:
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


def test_residency(bundle: Path, tmp_path: Path) -> None:
    """With room for one, two ControlNets take turns, and requests without any go on meanwhile; the
    trace shows one beside the encoder half.
    """
    manifest = read_manifest(bundle)
    room = max(manifest.controlnet_bytes(name) for name in NAMES) * 1.2 / 1e9
    flags = (f"--control-memory={room}", f"--trace={tmp_path / 'trace.json'}")
    edges, silhouette = (Control(name, image=EDGES) for name in NAMES)
    with (
        serving(bundle, tmp_path / "log", *flags) as server,
        Client(server.http, timeout=120) as client,
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
            loads = [job.result().info.control_load_ms for job in jobs]
        assert max(info.queue_ms for info in plain) < max(loads) / 2
        with pytest.raises(InvalidInput, match="CONTROLS is 'edges, silhouette'; accepted: Contro"):
            draw(edges, silhouette)
        assert draw().info.control_load_ms == 0
    events = json.loads((tmp_path / "trace.json").read_text().rstrip().rstrip(",") + "]")
    asked = [e for e in events if e["name"] == "ControlNet edges"]
    halves = [e for e in events if e["name"] == "encoder half"]
    assert any(
        a["ts"] < h["ts"] + h["dur"] and h["ts"] < a["ts"] + a["dur"] for a in asked for h in halves
    )
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} >= {"denoise", "controlnet_edges"}


def test_pinned_and_placed(bundle: Path, tmp_path: Path) -> None:
    flags = ("--pin=edges", "--place=edges=cpu", "--place=silhouette=cpu")
    with serving(bundle, tmp_path / "log", *flags) as server:
        assert server.ready("controlnet_edges")
        assert not server.ready("controlnet_silhouette")
        with Client(server.http) as client:
            draw = client.generate(
                PROMPT, steps=2, controls=[Control("edges", image=control_picture(1))]
            )
            assert draw.info.control_load_ms < 50


def test_a_plain_tritonserver_serves_the_models_that_are_written_for_it(
    bundle: Path, tmp_path: Path
) -> None:
    written = tmp_path / "models"
    subprocess.run(
        [sys.executable, "-m", "tessera.serve", str(bundle), f"--write-models={written}"],
        check=True,
    )
    with (
        plain_serving(
            [model_repository(), written], tmp_path / "log", TESSERA_BUNDLE=str(bundle)
        ) as server,
        Client(server.http) as client,
    ):
        controls = [Control(name, image=EDGES, end=0.6) for name in NAMES]
        result = client.generate(PROMPT, seed=1, steps=4, controls=controls)
        assert result.info.control_ticks == 2
    for left in Path("/dev/shm").glob(f"tessera-board-*-{server.process.pid}-*"):
        left.unlink()


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--place=edges=gpu", "--place is 'edges=gpu'; accepted: NAME=cpu or NAME=gpu:N"),
        ("--place=depth=cpu", "--place names the ControlNet 'depth'; accepted: edges, silhouette"),
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
