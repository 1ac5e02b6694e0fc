"""Sparse edits and their templates on a real server: registration, modes, company, faults."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from bench.server import DEMO_BUNDLE, Server
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.errors import Cancelled, InvalidInput
from tessera.manifest import read_manifest
from tessera.shared.processes import model_processes
from tessera.templates.store import RecordingKey, TemplateStore
from tessera_client import AsyncClient, Client, Result
from tessera_client.comparing import compare, pairs_in
from tessera_client.messages import EditOptions
from tests.samples.images import island, largest, ramp
from tests.samples.inpainting import PROMPT
from tests.samples.jobs import unique, wait_for_step
from tests.samples.servers import family_of
from tests.samples.waiting import comes

STEPS = 10


@pytest.fixture(scope="module")
def picture(server: Server) -> Any:
    with Client(server.http) as client:
        return np.asarray(client.generate("a large red circle in the center", seed=3).image)


def sparse(client: Client, image: Any, mask: Any, **options: Any) -> Result:
    return client.edit(
        image,
        mask,
        PROMPT,
        **{"seed": 1, "steps": STEPS, "mode": "sparse", "quality": "fast", **options},
    )


def everything() -> Any:
    return np.full((128, 128), 255, np.uint8)


def recordings(client: Client, template: str) -> list[dict[str, Any]]:
    listed = client.templates()["templates"]
    return next((t["recordings"] for t in listed if t["template"] == template), [])


def test_a_registered_template_is_edited_sparsely_by_its_id(client: Client, picture: Any) -> None:
    made = client.register_template(picture, steps=STEPS)
    again = client.register_template(template=made.template, steps=STEPS)
    assert not again.recorded
    assert (made.steps, made.bytes) == (STEPS, again.bytes)
    mask = island()
    result = sparse(client, None, mask, template=made.template)
    info = result.info
    assert (info.mode, info.ticks) == ("sparse", STEPS)
    assert info.sparse_ticks == STEPS - 1
    assert info.template == made.template
    assert info.cache_load_ms >= 0
    pixels = np.asarray(result.image)
    assert (pixels[mask < 128] == picture[mask < 128]).all()
    assert (pixels[mask >= 128] != picture[mask >= 128]).mean() > 0.5
    memory = client.templates()["memory"]
    assert memory["bytes"] > 0
    assert memory["hits"] > 0


@pytest.mark.parametrize(
    "options", [{"strength": 0.5}, {"extend": (0, 0, 32, 0)}], ids=["whole", "room"]
)
def test_a_template_without_a_mask_is_edited_as_its_image_is(
    http_client: Client, picture: Any, options: dict[str, Any]
) -> None:
    template = http_client.register_template(picture, steps=STEPS).template
    options = {"seed": 1, "steps": STEPS, "mode": "dense", **options}
    by_id = http_client.edit(None, None, PROMPT, template=template, **options)
    by_image = http_client.edit(picture, None, PROMPT, **options)
    assert by_id.image.tobytes() == by_image.image.tobytes()
    assert by_id.image.size == by_image.image.size


@pytest.mark.parametrize(
    ("options", "recording"),
    [
        ({}, "own"),
        ({"quality": "fast"}, "empty"),
        ({"padding_mask_crop": 16, "width": 64, "height": 64}, "own"),
        ({"loras": ["outline"], "negative_prompt": "grey"}, "own"),
    ],
    ids=["balanced", "fast", "crop", "LoRA"],
)
def test_a_comparison_reads_what_later_edits_read(
    http_client: Client, tmp_path: Path, options: EditOptions, recording: str
) -> None:
    Image.fromarray(ramp()[::-1]).save(tmp_path / "one.png")
    Image.fromarray(island()).save(tmp_path / "one.mask.png")
    (pair,) = pairs_in(tmp_path, PROMPT)
    options |= {"seed": 1, "steps": STEPS}
    report = compare(http_client, pair, options, repeats=2).report
    assert (report["recording"], report["quality"]) == (
        recording,
        options.get("quality") or "balanced",
    )
    assert report["recorded_loras"] is (True if "loras" in options else None)
    assert report["margin"] >= 1
    assert report["sparse_steps"] > 0


def test_edits_take_the_recording_of_the_nearest_prompt(http_client: Client) -> None:
    """By its words: the same prompt, another colour, something else."""
    client, image, mask = http_client, ramp()[:, ::-1, ::-1].copy(), island()
    made = client.register_template(image, steps=STEPS, prompt=PROMPT)
    assert made.recorded
    assert made.prompt in {row["prompt"] for row in recordings(client, made.template)}
    near = PROMPT.replace("blue", "green")
    assert near != PROMPT
    results = {
        (prompt, quality): client.edit(
            image, mask, prompt, seed=1, steps=STEPS, mode="sparse", quality=quality
        )
        for prompt, quality in ((PROMPT, None), (near, None), ("dotted", "best"), (PROMPT, "fast"))
    }
    infos = [result.info for result in results.values()]
    assert [info.recording for info in infos] == ["own", "near", "empty", "empty"]
    assert [info.edit_quality for info in infos] == ["balanced", "balanced", "best", "fast"]
    assert {info.mode for info in infos} == {"sparse"}
    assert infos[3].margin == 1
    dense = client.edit(image, mask, PROMPT, seed=1, steps=STEPS, mode="dense")
    assert (dense.info.recording, dense.info.margin) == (None, None)
    own, fast = (
        np.abs(np.asarray(results[PROMPT, quality].image, float) - np.asarray(dense.image)).mean()
        for quality in (None, "fast")
    )
    assert own < fast


def test_with_the_whole_picture_masked_sparse_is_dense(http_client: Client, picture: Any) -> None:
    one = sparse(http_client, picture, everything())
    other = sparse(http_client, picture, everything(), mode="dense")
    assert (one.info.mode, other.info.mode) == ("sparse", "dense")
    assert largest(one, np.asarray(other.image)) <= 2


def test_automatic_edits_become_sparse_once_the_template_is_recorded(http_client: Client) -> None:
    image = ramp()[::-1].copy()
    mask = np.zeros((128, 128), np.uint8)
    mask[40:64, 40:64] = 255
    first = sparse(http_client, image, mask, mode="auto", steps=6)
    assert first.info.mode == "dense"
    template = first.info.template or ""
    comes(lambda: bool(recordings(http_client, template)))

    def becomes_sparse() -> bool:
        """By measured costs, so not while the machine stalls. What is not chosen is not measured:
        it is asked for by its name each time.
        """
        for mode in ("sparse", "dense"):
            assert sparse(http_client, image, mask, mode=mode, steps=6).info.mode == mode
        return sparse(http_client, image, mask, mode="auto", steps=6).info.mode == "sparse"

    comes(becomes_sparse)


def test_cancelling_an_edit_does_not_wait_for_its_recording(
    server: Server, http_client: Client
) -> None:
    """Its recording is held up by another process, the test, that has its lock."""
    image, job = ramp()[::-1, ::-1].copy(), unique("edit")
    template = http_client.register_template(image, steps=2).template
    key = RecordingKey(read_manifest(DEMO_BUNDLE).digest, template, "euler", STEPS, TEMPLATE_SEED)
    store = TemplateStore(server.log.parent / "templates", budget=10**9)
    lock = str(store.root / "recordings" / f".{key.digest}.lock")
    with store.locked(key), ThreadPoolExecutor(1) as pool:
        future = pool.submit(sparse, http_client, image, island(), job_id=job)
        comes(lambda: lock in files_of(server, "templates"))
        http_client.cancel(job)
        with pytest.raises(Cancelled, match=f"job {job} was cancelled"):
            future.result(300)
    comes(lambda: store.find(key) is not None)
    assert not http_client.register_template(image, steps=STEPS).recorded  # it had been finished


def files_of(server: Server, model: str) -> set[str]:
    """What the processes of a model have open."""
    (triton,) = [p for p in family_of(server) if "tritonserver" in p.name()]
    pids = [pid for pid, name in model_processes(triton.pid).items() if name == model]
    return {file.path for pid in pids for file in psutil.Process(pid).open_files()}


def test_edits_of_all_kinds_share_ticks_and_do_not_change_each_other(
    http_client: Client, picture: Any
) -> None:
    small = np.zeros((128, 128), np.uint8)
    small[32:64, 64:100] = 255
    jobs: list[Callable[[], Result]] = [
        lambda: sparse(http_client, picture, island(), seed=4, steps=40),
        lambda: sparse(http_client, picture, small, seed=5, steps=40, strength=0.7),
        lambda: sparse(http_client, ramp(), island(), seed=6, steps=40),
        lambda: sparse(http_client, picture, island(), seed=7, steps=40, mode="dense"),
        lambda: http_client.generate(PROMPT, seed=8, steps=40),
    ]
    alone = [np.asarray(job().image, np.int16) for job in jobs]
    ticks: list[set[int]] = [set() for _ in jobs]
    met = Event()

    def again_and_again(at: int) -> None:
        """Its picture over and over, until all kinds have been in one tick."""
        for _ in range(100):
            result = jobs[at]()
            assert largest(result, alone[at]) <= 2
            ticks[at].update(range(result.info.first_tick, result.info.last_tick + 1))
            if set.intersection(*ticks):
                met.set()
            if met.is_set():
                return

    with ThreadPoolExecutor(len(jobs)) as pool:
        for each in [pool.submit(again_and_again, at) for at in range(len(jobs))]:
            each.result()
    assert met.is_set()


def test_two_clients_registering_one_image_record_it_once(http_client: Client) -> None:
    image = ramp()[:, ::-1].copy()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(http_client.register_template, image, steps=5) for _ in range(2)]
        found = [f.result() for f in asked]
    assert sorted(f.recorded for f in found) == [False, True]
    assert found[0].template == found[1].template
    assert len(recordings(http_client, found[0].template)) == 1


def test_a_damaged_recording_is_not_served_but_made_again(
    server: Server, http_client: Client, picture: Any
) -> None:
    expected = np.asarray(sparse(http_client, picture, island(), steps=8).image)
    template = http_client.register_template(picture, steps=8).template
    (folder,) = [
        path.parent
        for path in (server.log.parent / "templates" / "recordings").glob("*/recording.json")
        if template in path.read_text() and '"steps": 8' in path.read_text()
    ]
    for file in folder.glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    restart = int(http_client.templates()["memory"]["entries"])
    assert restart > 0  # what is in memory is not affected
    assert largest(sparse(http_client, picture, island(), steps=8), expected) <= 2
    http_client.evict_template(template)
    assert largest(sparse(http_client, picture, island(), steps=8), expected) <= 2


def test_evicting_during_an_edit_does_not_change_it(http_client: Client, picture: Any) -> None:
    alone = np.asarray(sparse(http_client, picture, island(), steps=60).image)
    template = http_client.register_template(picture, steps=60).template
    with ThreadPoolExecutor(1) as pool:
        job = unique("evicted")
        future = pool.submit(sparse, http_client, picture, island(), steps=60, job_id=job)
        wait_for_step(http_client, job, 1)
        http_client.evict_template(template)
        result = future.result()
    assert np.asarray(result.image).shape == alone.shape
    assert (np.asarray(result.image)[island() < 128] == picture[island() < 128]).all()


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda c: c.register_template(), "IMAGE is missing, and so is TEMPLATE"),
        (
            lambda c: c.register_template(template="no"),
            "TEMPLATE is 'no'; accepted: the id of a kn",
        ),
        (lambda c: c.register_template(ramp(), steps=0), "STEPS is 0; accepted: an integer"),
        (lambda c: c.register_template(ramp(), scheduler="x"), "SCHEDULER is 'x'; accepted"),
        (lambda c: c.register_template(ramp(512, 64)), "IMAGE has 512 x 64 pixels"),
        (
            lambda c: c.evict_template("no"),
            "TEMPLATE is 'no'; accepted: the id of a known template",
        ),
    ],
    ids=["no image", "unknown", "steps", "scheduler", "large", "evict unknown"],
)
def test_bad_requests_are_answered(
    client: Client, picture: Any, action: Callable[[Client], Any], sentence: str
) -> None:
    client.register_template(picture, steps=STEPS)
    with pytest.raises(InvalidInput) as caught:
        action(client)
    assert str(caught.value).startswith(sentence)


def test_metrics_show_the_tiers(server: Server, http_client: Client, picture: Any) -> None:
    sparse(http_client, picture, island())
    with urllib.request.urlopen(f"http://localhost:{server.metrics_port}/metrics") as answer:
        text = answer.read().decode()
    assert "tessera_template_hits" in text
    assert "tessera_template_bytes" in text


def test_the_async_client_registers_too(server: Server, picture: Any) -> None:
    async def session() -> None:
        async with AsyncClient(server.grpc) as client:
            assert (await client.register_template(picture, steps=STEPS)).steps == STEPS
            assert (await client.templates())["templates"]

    asyncio.run(session())
