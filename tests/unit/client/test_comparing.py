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
    """Inverts what it is sent; a sparse edit is a little off.

    Attributes:
        recordings: what the first sparse edits say that they have read; later ones say `own`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recordings: list[str] = []

    def infer(self, call: Any, timeout: float) -> dict[str, Array]:
        outputs = super().infer(call, timeout)
        if call.model != "edit":
            return outputs
        info = json.loads(outputs["INFO"][0, 0])
        sparse = call.inputs["MODE"].item() == b"sparse"
        quality = call.inputs.get("EDIT_QUALITY", np.array(b"balanced")).item().decode()
        info |= {"total_ms": 50.0, "edit_quality": quality}
        if sparse:
            info |= {"total_ms": 20.0, "sparse_ticks": 1, "margin": 3}
            info["recording"] = self.recordings.pop(0) if self.recordings else "own"
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
    assert [each["PROMPT"] for each in transport.sent("templates")] == [b"a star", b"a ball"]
    for words in ("one", "two", "median", "22.9 %", "50 ms", "20 ms", "2.50 x", "own"):
        assert words in result.output
    content = json.loads((tmp_path / "compare" / "results.json").read_text())
    (first, _), median = content["pairs"], content["median"]
    assert (first["name"], first["prompt"], first["faster"]) == ("one", "a star", 2.5)
    assert (first["quality"], first["recording"], first["margin"]) == ("balanced", "own", 3)
    assert first["milliseconds"] == {"dense": [50.0, 50.0], "sparse": [20.0, 20.0]}
    assert 0.9 < first["ssim"] < 1
    assert median["psnr"] == pytest.approx(10 * np.log10(255**2 / 9), abs=0.01)
    with Image.open(tmp_path / "compare" / "sheet.png") as sheet:
        assert sheet.width > 4 * 256
        assert sheet.height > 2 * 256
    assert called(tmp_path, "--prompt", "a ball").exit_code == 0, "its own files are no pairs"


def test_what_edits_have_is_recorded_too(transport: Drawing, tmp_path: Path) -> None:
    put(tmp_path, "one", "a star")
    put(tmp_path, "two", "a ball")
    Image.new("RGB", (56, 40)).save(tmp_path / "one-edges.png")
    words = ["--quality", "best", "--negative", "grey", "--lora", "ink:0.5", "--clip-skip", "1"]
    words += ["--syntax", "plain", "--control", f"edges={tmp_path / '{name}-edges.png'},scale=0.5"]
    result = called(tmp_path, *words)
    assert result.exit_code == 1
    assert "two-edges.png" in result.output, "each picture has a control image of its own"
    (recorded,), edits = transport.sent("templates"), transport.sent("edit")
    assert [each["EDIT_QUALITY"] for each in edits] == [b"best"] * 2
    names = ("PROMPT", "NEGATIVE_PROMPT", "PROMPT_SYNTAX", "CLIP_SKIP", "LORAS", "CONTROLS")
    for each in edits:
        assert [each[name] for name in names] == [recorded[name] for name in names]
    assert (recorded["PROMPT"], recorded["CLIP_SKIP"]) == (b"a star", 1)
    assert json.loads(recorded["LORAS"]) == [{"name": "ink", "weight": 0.5}]


def test_fast_edits_have_the_empty_prompt_recorded(transport: Drawing, tmp_path: Path) -> None:
    put(tmp_path, "one", "a star")
    words = ["--quality", "fast", "--lora", "ink", "--negative", "grey"]
    assert called(tmp_path, *words).exit_code == 0
    (recorded,) = transport.sent("templates")
    assert "LORAS" in recorded
    assert not {"PROMPT", "NEGATIVE_PROMPT"} & recorded.keys()


def test_a_crop_is_recorded_by_a_first_edit(transport: Drawing, tmp_path: Path) -> None:
    put(tmp_path, "one", "a star")
    transport.recordings = ["own", "empty", "own"]
    words = ["--padding-mask-crop", "8", "--width", "64", "--height", "64", "--repeats", "2"]
    result = called(tmp_path, *words, "--json")
    assert not transport.sent("templates")
    edits = transport.sent("edit")
    assert [each["MODE"] for each in edits] == [b"dense", b"sparse", b"sparse", b"dense", b"sparse"]
    assert {(int(each["PADDING_MASK_CROP"]), int(each["WIDTH"])) for each in edits} == {(8, 64)}
    (one,) = map(json.loads, result.stdout.splitlines())
    assert one["recording_s"] is None
    assert one["milliseconds"]["sparse"] == [20.0, 20.0]
    assert one["recording"] == "empty, own", "what they read has changed meanwhile"


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
