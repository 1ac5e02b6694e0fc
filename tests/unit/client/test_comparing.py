"""`tessera compare` with a fake transport behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tessera.errors import InvalidInput
from tessera.types import Array
from tessera_client import cli, connection
from tests.fakes.transport import FakeTransport

run = CliRunner()
RNG = np.random.default_rng(6)


class Drawing(FakeTransport):
    """Inverts what it is sent; a sparse edit is a little off."""

    def infer(self, call: Any, timeout: float) -> dict[str, Array]:
        outputs = super().infer(call, timeout)
        if call.model != "edit":
            return outputs
        info = json.loads(outputs["INFO"][0, 0])
        sparse = call.inputs["MODE"].item() == b"sparse"
        info |= {"total_ms": 20.0, "sparse_ticks": 1} if sparse else {"total_ms": 50.0}
        image = 255 - outputs["IMAGE"] // 2 - 3 * sparse
        return {"IMAGE": image.astype(np.uint8), "INFO": np.array([[json.dumps(info).encode()]])}


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Drawing:
    fake = Drawing()
    monkeypatch.setattr(connection, "connect", lambda address: fake)
    return fake


def put(
    folder: Path, name: str, prompt: str | None = None, size: tuple[int, int] = (40, 56)
) -> None:
    Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros(size, np.uint8)
    mask[8:24, 8:40] = 255
    Image.fromarray(mask).save(folder / f"{name}.mask.png")
    if prompt:
        (folder / f"{name}.txt").write_text(prompt)


def called(folder: Path, *more: str) -> Any:
    return run.invoke(cli.app, ["compare", str(folder), *more])


def test_every_pair_is_drawn_both_ways(transport: Drawing, tmp_path: Path) -> None:
    put(tmp_path, "one", "a star")
    put(tmp_path, "two")
    (tmp_path / "notes.md").write_text("no picture")
    result = called(tmp_path, "--prompt", "a ball", "--steps", "4", "--repeats", "2")
    assert result.exit_code == 0, result.output
    sent = transport.sent("edit")
    prompts = [each["PROMPT"] for each in sent]
    assert prompts == [b"a star"] * 4 + [b"a ball"] * 4
    assert [each["MODE"] for each in sent] == [b"dense", b"sparse"] * 4
    assert {each["SEED"] for each in sent} == {1}
    assert [each["STEPS"] for each in transport.sent("templates")] == [4, 4]
    for words in ("one", "two", "median", "22.9 %", "50 ms", "20 ms", "2.50 x"):
        assert words in result.output
    content = json.loads((tmp_path / "compare" / "results.json").read_text())
    (first, _), median = content["pairs"], content["median"]
    assert (first["name"], first["prompt"], first["faster"]) == ("one", "a star", 2.5)
    assert first["milliseconds"] == {"dense": [50.0, 50.0], "sparse": [20.0, 20.0]}
    assert 0.9 < first["ssim"] < 1
    assert median["psnr"] == pytest.approx(10 * np.log10(255**2 / 9), abs=0.01)
    with Image.open(tmp_path / "compare" / "sheet.png") as sheet:
        assert sheet.width > 4 * 256
        assert sheet.height > 2 * 256
    assert called(tmp_path, "--prompt", "a ball").exit_code == 0, "its own files are no pairs"


def test_a_pair_that_cannot_be_drawn_is_said(transport: Drawing, tmp_path: Path) -> None:
    put(tmp_path, "one", "a star")
    put(tmp_path, "two", "a ball")
    transport.failures = [InvalidInput("STEPS", 0, "1 to 1000")]
    result = called(tmp_path, "--json", "-o", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "one: STEPS is 0; accepted: 1 to 1000" in result.output
    assert json.loads(result.stdout.splitlines()[-1])["name"] == "two"
    assert (tmp_path / "out" / "sheet.png").exists()


def test_what_a_folder_lacks(transport: Drawing, tmp_path: Path) -> None:
    assert "has no pairs; accepted: name.png with name.mask.png" in called(tmp_path).output
    put(tmp_path, "one")
    assert "one.png has no prompt; accepted:" in called(tmp_path).output
    (tmp_path / "one.png").unlink()
    result = called(tmp_path)
    assert "one.mask.png has no picture; accepted: one.png beside it" in result.output
    assert result.exit_code == 2
    assert not transport.calls
