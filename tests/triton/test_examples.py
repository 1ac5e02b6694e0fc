"""Every example runs as a user would run it, and draws what the SDK draws for the same request."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench.server import ROOT, Server
from tessera.types import Array
from tessera_client import Client, Lora
from tests.samples.gateways import gateway

EXAMPLES = ROOT / "examples"
TESTED = {
    "README.md",
    "curl.sh",
    "edit.py",
    "openai_images.py",
    "repaint.py",
    "sdk.py",
    "sdk_async.py",
    "spans.py",  # by test_spans.py
    "tritonclient_grpc.py",
    "tritonclient_http.py",
}
SQUARE = "a large green square in the center on a striped white background"
CIRCLE = "a large red circle at the left on a blue background"
TRIANGLE = "a medium blue triangle at the right on a yellow background"
STEPS = 10
SIDE = 128


def run(name: str, url: str, picture: Path) -> tuple[Array, str]:
    """The picture that an example draws, and what it prints."""
    program = ["sh"] if name.endswith(".sh") else [sys.executable]
    done = subprocess.run(
        [*program, str(EXAMPLES / name), url, str(picture)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"), np.int16), done.stdout


def parts(picture: Array, count: int) -> list[Array]:
    """Pictures that are side by side."""
    assert picture.shape == (SIDE, count * SIDE, 3)
    return np.split(picture, count, axis=1)


def assert_same(found: Sequence[Array], expected: Sequence[Image.Image]) -> None:
    """Alone or in a batch: within 1/255."""
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - np.asarray(other, np.int16)).max() <= 1


def test_all_are_tested() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == TESTED


def test_curl(server: Server, http_client: Client, tmp_path: Path) -> None:
    picture, printed = run("curl.sh", server.http, tmp_path / "picture.png")
    result = http_client.generate(SQUARE, seed=3, steps=STEPS)
    assert_same(parts(picture, 1), [result.image])
    info, job = map(json.loads, printed.splitlines())
    assert (info["seed"], info["steps"], info["job_id"]) == (3, STEPS, "curl-example")
    status = json.loads(job["outputs"][0]["data"][0])
    assert (status["job_id"], status["phase"]) == ("curl-example", "done")


def test_tritonclient_http(server: Server, http_client: Client, tmp_path: Path) -> None:
    picture, printed = run("tritonclient_http.py", server.http, tmp_path / "picture.png")
    loras = [Lora("outline", 0.8)]
    result = http_client.generate(SQUARE, seed=3, steps=STEPS, guidance=4.0, loras=loras)
    assert_same(parts(picture, 1), [result.image])
    assert f"seed 3, {STEPS} steps" in printed


def test_tritonclient_grpc(server: Server, http_client: Client, tmp_path: Path) -> None:
    picture, printed = run("tritonclient_grpc.py", server.grpc, tmp_path / "picture.png")
    results = [http_client.generate(p, seed=3, steps=STEPS) for p in (SQUARE, TRIANGLE)]
    assert_same(parts(picture, 2), [result.image for result in results])
    assert "STEPS is 0" in printed
    assert len(re.findall("in batches of", printed)) == 2


def test_sdk(server: Server, http_client: Client, tmp_path: Path) -> None:
    picture, printed = run("sdk.py", server.http, tmp_path / "picture.png")
    result = http_client.generate(SQUARE, seed=3, steps=STEPS, loras=[Lora("outline", 0.8)])
    assert_same(parts(picture, 1), [result.image])
    assert f"of {STEPS}" in printed
    assert "rejected: LORAS[0].name is 'outlined'" in printed


def test_sdk_async(server: Server, http_client: Client, tmp_path: Path) -> None:
    picture, printed = run("sdk_async.py", server.grpc, tmp_path / "picture.png")
    prompts = enumerate((CIRCLE, SQUARE, TRIANGLE), start=1)
    results = [http_client.generate(p, seed=n, steps=STEPS) for n, p in prompts]
    assert_same(parts(picture, 3), [result.image for result in results])
    assert len(re.findall("in batches of", printed)) == 3


def test_edit(server: Server, http_client: Client, tmp_path: Path) -> None:
    picture, printed = run("edit.py", server.http, tmp_path / "picture.png")
    before, after = parts(picture, 2)
    drawn = http_client.generate(CIRCLE, seed=1, steps=STEPS).image
    assert_same([before], [drawn])
    changed = (before != after).any(axis=-1)
    inside = np.zeros_like(changed)
    inside[32:96, 8:72] = True
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.25
    assert "25 % edited, sparse" in printed


def test_repaint(server: Server, http_client: Client, tmp_path: Path) -> None:
    picture, printed = run("repaint.py", server.http, tmp_path / "picture.png")
    before, after = parts(picture, 2)
    assert_same([before], [http_client.generate(CIRCLE, seed=1, steps=STEPS).image])
    (box,) = json.loads(printed.rpartition("anew: ")[2])
    x, y, width, height = box
    inside = np.zeros(before.shape[:2], bool)
    inside[y : y + height, x : x + width] = True
    changed = (before != after).any(axis=-1)
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.25
    red = (before[..., 0] > 120) & (before[..., 1] < 90)
    assert inside[red].mean() > 0.95, "the circle is in the box"


def test_openai_images(server: Server, http_client: Client, tmp_path: Path) -> None:
    with gateway(server.grpc, tmp_path / "log") as running:
        picture, printed = run("openai_images.py", running.url, tmp_path / "picture.png")
    before, after = parts(picture, 2)
    drawn = http_client.generate(CIRCLE, seed=1, steps=STEPS).image
    edited = http_client.edit(drawn, (8, 32, 64, 64), SQUARE, seed=4, steps=STEPS).image
    assert_same([before], [drawn])
    outside = np.ones(after.shape[:2], bool)
    outside[32:96, 8:72] = False
    assert (before[outside] == after[outside]).all()
    assert np.abs(after - np.asarray(edited, np.int16)).mean() < 10  # its recording may be there
    assert "256 image tokens, seed 4" in printed


def test_the_reference_has_the_fields_of_info(server: Server, tmp_path: Path) -> None:
    """docs/user/api.md, against what a server sends."""
    _, printed = run("curl.sh", server.http, tmp_path / "picture.png")
    text = (ROOT / "docs" / "user" / "api.md").read_text()
    section = text.partition("\n## INFO\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    assert {name for row in rows for name in re.findall("`(.+?)`", row)} == set(
        json.loads(printed.splitlines()[0])
    )
