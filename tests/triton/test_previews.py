"""Previews over the wire."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.server import DEMO_BUNDLE, Server
from tessera.errors import Cancelled, InvalidInput, UnknownJob
from tessera.manifest import read_manifest
from tessera_client import Client, Preview
from tests.samples.jobs import ENDLESS, unique, wait_for_step
from tests.samples.waiting import PATIENCE_S, again_until, until

PROMPT = "a large red circle at the left on a blue background"


def test_a_generation_shows_its_previews(client: Client) -> None:
    seen = shown(client, client.generate, PROMPT, seed=7)
    steps = [p.step for p in seen]
    assert steps == sorted(set(steps))
    assert {p.steps for p in seen} == {1000}
    assert {p.image.shape for p in seen} == {(32, 32, 3)}
    assert {(p.width, p.height) for p in seen} == {(128, 128)}


def shown(client: Client, draw: Callable[..., Any], *what: Any, **options: Any) -> list[Preview]:
    """Two previews, or some more, of an endless picture, which is cancelled then."""
    seen, job = list[Preview](), unique("shown")

    def show(preview: Preview) -> None:
        seen.append(preview)
        if len(seen) == 2:
            client.cancel(job)

    with pytest.raises(Cancelled):
        draw(*what, job_id=job, on_preview=show, **ENDLESS, **options)
    return seen


def test_the_last_preview_is_the_picture(client: Client) -> None:
    """If somebody looked while it was drawn; a client that is kept from it for too long asks for
    another picture.
    """

    def drawn() -> tuple[str, Any]:
        job = unique("last")
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(client.generate, PROMPT, job_id=job, seed=7, steps=60)
            wait_for_step(client, job, 0)
            until(lambda: last_step(client, job) == 60 or future.done())
            return job, np.asarray(future.result().image).astype(float)

    job, image = again_until(drawn, lambda found: last_step(client, found[0]) == 60)
    linear, vae = client.preview(job), client.preview(job, "vae")
    assert linear
    assert vae
    assert (linear.step, vae.step) == (60, 60)
    assert np.abs(vae.image - image).max() <= 1, "but for what the last step rounds"
    means = image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    decoder = read_manifest(DEMO_BUNDLE).linear_decoder
    assert decoder
    assert np.sqrt(((linear.image - means) ** 2).mean()) < 2 * decoder.rmse


def last_step(client: Client, job: str) -> int:
    """Of its latest preview; 0 if there is none."""
    preview = client.preview(job)
    return preview.step if preview else 0


def test_an_edit_shows_the_template_outside_its_mask(client: Client) -> None:
    template = client.generate(PROMPT, seed=7, steps=20).image
    seen = shown(client, client.edit, template, (0, 32, 64, 64), PROMPT, mode="dense")
    first, last = seen[0].image, seen[-1].image
    active = np.zeros((32, 32), bool)
    active[8:24, :16] = True
    np.testing.assert_array_equal(first[~active], last[~active])
    assert (first[active] != last[active]).any()


def test_bad_previews_are_refused(client: Client) -> None:
    with pytest.raises(UnknownJob):
        client.preview("nobody")
    job = client.generate("a", steps=1).info.job_id
    with pytest.raises(InvalidInput, match="DECODER is 'tiny'; accepted: linear, vae"):
        client.preview(job, "tiny")


def test_a_status_is_what_it_was(server: Server, client: Client) -> None:
    """For clients that name no outputs and know no previews."""
    job = client.generate("a", steps=1).info.job_id
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in {"ACTION": "status", "JOB_ID": job}.items()
    ]
    request = urllib.request.Request(
        f"{server.http}/v2/models/jobs/infer", json.dumps({"inputs": inputs}).encode()
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        answer = json.load(response)
    (output,) = answer["outputs"]
    assert output["name"] == "RESULT"
    assert "picture_step" not in json.loads(output["data"][0])


def test_pictures_are_the_same_whether_somebody_watches(client: Client) -> None:
    watched = client.generate(PROMPT, seed=3, steps=30, on_preview=lambda preview: None).image
    alone = client.generate(PROMPT, seed=3, steps=30).image
    assert isinstance(watched, Image.Image)
    assert watched.tobytes() == alone.tobytes()


def test_the_command_writes_previews_to_a_file(server: Server, tmp_path: Path) -> None:
    """If the picture is not done before it looks."""
    command = [str(Path(sys.executable).parent / "tessera"), "generate", PROMPT, "--steps=300"]
    files = ["-o", str(tmp_path / "o.png"), "--preview-file", str(tmp_path / "p.png")]

    def seen() -> bool:
        done = subprocess.run(
            [*command, *files, "--url", server.grpc],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        return (tmp_path / "p.png").exists()

    again_until(seen, bool)
    with Image.open(tmp_path / "p.png") as preview, Image.open(tmp_path / "o.png") as picture:
        assert preview.size == picture.size
        assert preview.tobytes() != picture.tobytes()
