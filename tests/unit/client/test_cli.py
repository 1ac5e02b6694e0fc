"""`tessera` with a fake transport behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tessera.errors import (
    Cancelled,
    InternalError,
    InvalidInput,
    TimedOut,
    Unavailable,
)
from tessera_client import cli, client, terminal
from tests.fakes.transport import FakeTransport

run = CliRunner()


class TestCommand:
    """`tessera` with a fake transport behind it."""

    @pytest.fixture
    def transport(self, monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
        fake = FakeTransport()
        monkeypatch.setattr(client, "connect", lambda url: fake)
        return fake

    def test_generate_writes_the_picture(self, transport: FakeTransport, tmp_path: Path) -> None:
        out = tmp_path / "new" / "o.png"
        result = run.invoke(
            cli.app, ["generate", "a", "-o", str(out), "--seed", "7", "--steps", "2"]
        )
        assert result.exit_code == 0, result.output
        assert out.exists()
        assert "seed 7, 2 steps of euler, 8 ms" in result.output
        (sent,) = transport.sent("generate")
        assert (sent["SEED"], sent["STEPS"]) == (7, 2)

    def test_n_counts_files_and_seeds(self, transport: FakeTransport, tmp_path: Path) -> None:
        out = tmp_path / "o.png"
        options = ["--n", "3", "--seed", "5", "--json"]
        result = run.invoke(cli.app, ["generate", "a", "-o", str(out), *options])
        assert [p.name for p in sorted(tmp_path.iterdir())] == ["o-1.png", "o-2.png", "o-3.png"]
        assert [s["SEED"] for s in transport.sent("generate")] == [5, 6, 7]
        lines = [json.loads(line) for line in result.stdout.strip().splitlines()]
        assert [Path(line["file"]).name for line in lines] == ["o-1.png", "o-2.png", "o-3.png"]

    @pytest.mark.parametrize(
        ("failure", "code"),
        [
            (InvalidInput("STEPS", 0, "more"), 2),
            (Unavailable("gone", undone=False), 3),
            (TimedOut("late"), 1),
            (InternalError("internal error 1"), 1),
            (Cancelled("cancelled"), 130),
            (KeyboardInterrupt(), 130),
        ],
        ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else str(v),
    )
    def test_exit_codes(
        self, transport: FakeTransport, failure: BaseException, code: int, tmp_path: Path
    ) -> None:
        transport.failures = [failure]
        result = run.invoke(cli.app, ["generate", "a", "-o", str(tmp_path / "o.png")])
        assert result.exit_code == code
        assert not (tmp_path / "o.png").exists()
        assert "Traceback" not in result.output

    @pytest.mark.parametrize("how", ["file", "rectangle", "transparent"])
    def test_edit(self, transport: FakeTransport, tmp_path: Path, how: str) -> None:
        mask = np.zeros((32, 48), np.uint8)
        mask[8:16, 4:24] = 255
        pixels = np.full((32, 48, 3), 77, np.uint8)
        alpha = [255 - mask] if how == "transparent" else []
        Image.fromarray(np.dstack([pixels, *alpha])).save(tmp_path / "i.png")
        Image.fromarray(mask).save(tmp_path / "m.png")
        options = {
            "file": ["--mask", str(tmp_path / "m.png")],
            "rectangle": ["--rect", "4,8,20,8"],
            "transparent": [],
        }[how]
        files = ["-o", str(tmp_path / "o.png"), "--sheet", str(tmp_path / "new" / "s.png")]
        command = ["edit", str(tmp_path / "i.png"), "a star", *options, *files]
        result = run.invoke(cli.app, [*command, "--strength", "0.5"])
        assert result.exit_code == 0, result.output
        (sent,) = transport.sent("edit")
        assert (sent["MASK"] == mask[None]).all()
        assert (sent["IMAGE"] == pixels[None]).all()
        assert sent["STRENGTH"] == 0.5
        with Image.open(tmp_path / "o.png") as out:
            assert (np.asarray(out) == pixels).all()
        with Image.open(tmp_path / "new" / "s.png") as both:
            assert both.width > 3 * 48

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["--rect", "1,2,3"], "--rect is '1,2,3'; accepted: x,y,width,height"),
            (["--rect", "0,0,99,9"], "is not within the image of 48 x 32 pixels"),
            ([], "there is no mask"),
        ],
        ids=["rectangle", "outside", "nothing"],
    )
    def test_edit_says_what_is_wrong_with_the_mask(
        self, transport: FakeTransport, tmp_path: Path, options: list[str], sentence: str
    ) -> None:
        Image.new("RGB", (48, 32)).save(tmp_path / "i.png")
        result = run.invoke(cli.app, ["edit", str(tmp_path / "i.png"), "a", *options])
        assert result.exit_code == 2
        assert sentence in result.output
        assert not transport.calls

    def test_templates(self, transport: FakeTransport, tmp_path: Path) -> None:
        Image.new("RGB", (16, 8)).save(tmp_path / "i.png")
        result = run.invoke(cli.app, ["templates", "add", str(tmp_path / "i.png"), "--steps", "4"])
        assert "abc  recorded in 0.5 s: 4 steps of euler, 5 MB (float16/1)" in result.output
        result = run.invoke(cli.app, ["templates", "list"])
        assert "not recorded" in result.output
        assert "memory: 1 of 2 MB" in result.output
        assert "reads that memory answered: 25.0 %" in result.output
        result = run.invoke(cli.app, ["templates", "evict", "abc", "--json"])
        assert json.loads(result.stdout) == {"template": "abc", "bytes": 7}
        assert len(transport.sent("templates")) == 3

    def test_adapters(self, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(terminal.output, "width", 160)
        result = run.invoke(cli.app, ["adapters", "list"])
        assert "unet 20, text_encoder 6" in result.output
        assert "nothing: it is damaged or ends early" in result.output
        result = run.invoke(cli.app, ["adapters", "list", "--json"])
        assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == ["ink", "torn"]

    @pytest.mark.parametrize(
        ("text", "sent"),
        [
            ("ink", {"name": "ink", "weight": 1.0}),
            ("ink:-0.5", {"name": "ink", "weight": -0.5}),
            ("ink:2:0", {"name": "ink", "weight": 2.0, "text_weight": 0.0}),
        ],
        ids=["name", "weight", "text weight"],
    )
    def test_loras(
        self, transport: FakeTransport, tmp_path: Path, text: str, sent: dict[str, Any]
    ) -> None:
        out = ["-o", str(tmp_path / "o.png")]
        result = run.invoke(cli.app, ["generate", "a", *out, "--lora", text, "--lora", "wash"])
        assert result.exit_code == 0, result.output
        loras = json.loads(transport.sent("generate")[0]["LORAS"])
        assert loras == [sent, {"name": "wash", "weight": 1.0}]

    @pytest.mark.parametrize("text", ["", ":1", "ink:much", "ink:nan", "ink:1:1:1"])
    def test_loras_that_are_none(self, transport: FakeTransport, text: str) -> None:
        result = run.invoke(cli.app, ["generate", "a", "--lora", text], env={"COLUMNS": "160"})
        assert result.exit_code == 2
        assert "accepted: NAME[:WEIGHT[:TEXT_WEIGHT]]" in result.output
        assert not transport.calls

    @pytest.mark.parametrize("command", ["generate", "edit"])
    def test_controls(self, transport: FakeTransport, tmp_path: Path, command: str) -> None:
        pixels = np.full((8, 16, 3), 77, np.uint8)
        file = tmp_path / "i.png"
        Image.fromarray(pixels).save(file)
        settings = "scale=0.5,start=0.1,end=0.6,preprocess=canny,low=50,high=150,resize=fit"
        line = ["generate", "a"] if command == "generate" else ["edit", str(file), "a"]
        line += [] if command == "generate" else ["--rect", "0,0,8,8"]
        line += ["--control", f"edges={file},{settings}", "--control", f"depth={file}"]
        result = run.invoke(cli.app, [*line, "-o", str(tmp_path / "o.png")])
        assert result.exit_code == 0, result.output
        (sent,) = transport.sent(command)
        edges, depth = json.loads(sent["CONTROLS"])
        assert edges == {
            "name": "edges",
            "scale": 0.5,
            "start": 0.1,
            "end": 0.6,
            "preprocess": "canny",
            "resize": "fit",
            "low": 50.0,
            "high": 150.0,
        }
        assert depth == {"name": "depth", "scale": 1.0, "start": 0.0, "end": 1.0}
        assert (sent["CONTROL_IMAGES"] == np.stack([pixels, pixels])[None]).all()

    @pytest.mark.parametrize(
        "text",
        [
            "edges",
            "=i.png",
            "edges=",
            "edges=i.png,scale",
            "edges=i.png,scale=much",
            "edges=i.png,sclae=1",
            "edges=i.png,scale=1,scale=1",
        ],
    )
    def test_controls_that_are_none(self, transport: FakeTransport, text: str) -> None:
        result = run.invoke(cli.app, ["generate", "a", "--control", text], env={"COLUMNS": "300"})
        assert result.exit_code == 2
        assert "accepted: NAME=FILE[,scale=S]" in result.output
        assert not transport.calls

    @pytest.mark.parametrize("name", ["gone.png", "text.png"])
    def test_pictures_that_cannot_be_read(
        self, transport: FakeTransport, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "text.png").write_text("no picture")
        result = run.invoke(cli.app, ["generate", "a", "--control", f"edges={tmp_path / name}"])
        assert result.exit_code == 2
        assert name in result.output.replace("\n", "")
        assert not transport.calls

    def test_jobs(self, transport: FakeTransport) -> None:
        result = run.invoke(cli.app, ["jobs", "j"])
        assert "j: denoising, step 1 of 2, 0.1 s" in result.output
        run.invoke(cli.app, ["jobs", "j", "--cancel", "--json"])
        assert [s["ACTION"] for s in transport.sent("jobs")] == [b"status", b"cancel"]

    def test_health_fails_when_a_model_is_not_ready(self, transport: FakeTransport) -> None:
        result = run.invoke(cli.app, ["health", "--json"])
        assert result.exit_code == 3
        assert json.loads(result.stdout)["models"]["templates"] is False
