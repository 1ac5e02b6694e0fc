"""`tessera` with a fake transport behind it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
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
from tessera.types import Array
from tessera_client import cli, connection, terminal
from tessera_client.wire import Call
from tests.fakes.transport import FakeTransport

run = CliRunner()


class TestCommand:
    """`tessera` with a fake transport behind it."""

    @pytest.fixture
    def transport(self, monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
        fake = FakeTransport()
        monkeypatch.setattr(connection, "connect", lambda address: fake)
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
        assert sorted(s["SEED"] for s in transport.sent("generate")) == [5, 6, 7]
        lines = [json.loads(line) for line in result.stdout.strip().splitlines()]
        assert [Path(line["file"]).name for line in lines] == ["o-1.png", "o-2.png", "o-3.png"]

    def test_several_pictures_are_under_way_at_once(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        together = threading.Barrier(3)

        class Waiting(FakeTransport):
            def infer(self, call: Call, timeout: float) -> dict[str, Array]:
                if call.model == "generate":
                    together.wait(30)
                return super().infer(call, timeout)

        fake = Waiting()
        monkeypatch.setattr(connection, "connect", lambda address: fake)
        options = ["-o", str(tmp_path / "o.png"), "--n", "3", "--job-id", "mine"]
        result = run.invoke(cli.app, ["generate", "a", *options])
        assert result.exit_code == 0, result.output
        jobs = sorted(s["JOB_ID"] for s in fake.sent("generate"))
        assert jobs == [b"mine-1", b"mine-2", b"mine-3"]
        assert len(result.stdout.splitlines()) == 3

    def test_with_previews_one_after_the_other(
        self, transport: FakeTransport, tmp_path: Path
    ) -> None:
        files = ["-o", str(tmp_path / "o.png"), "--preview-file", str(tmp_path / "p.png")]
        result = run.invoke(cli.app, ["generate", "a", *files, "--n", "2", "--seed", "5"])
        assert result.exit_code == 0, result.output
        assert [s["SEED"] for s in transport.sent("generate")] == [5, 6]

    def test_a_lora_whose_name_has_a_colon(self, transport: FakeTransport, tmp_path: Path) -> None:
        given = json.dumps({"name": "A:B", "weight": 0.5})
        out = ["-o", str(tmp_path / "o.png")]
        result = run.invoke(cli.app, ["generate", "a", *out, "--lora", given])
        assert result.exit_code == 0, result.output
        loras = json.loads(transport.sent("generate")[0]["LORAS"])
        assert loras == [{"name": "A:B", "weight": 0.5}]

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

    def test_edits_with_more_than_a_mask(self, transport: FakeTransport, tmp_path: Path) -> None:
        Image.new("RGB", (48, 32)).save(tmp_path / "i.png")
        Image.new("L", (48, 32), 99).save(tmp_path / "m.png")
        files = [str(tmp_path / "i.png"), "a", "-o", str(tmp_path / "o.png")]
        masks = ["--mask", str(tmp_path / "m.png"), "--mask-kind", "soft"]
        crop = ["--padding-mask-crop", "8", "--width", "64", "--height", "32"]
        border = ["--mask-feather", "16", "--mask-tone", "matched"]
        lines = [
            [*masks, *crop, "--region", f"{tmp_path / 'm.png'}=b = c"],
            ["--strength", "0.5", "--mask-fill", "noise", *border],
            ["--extend", "8,0,0,4", "--sheet", str(tmp_path / "s.png")],
        ]
        for line in lines:
            result = run.invoke(cli.app, ["edit", *files, *line])
            assert result.exit_code == 0, result.output
        first, second, third = transport.sent("edit")
        assert (first["MASK"] == 99).all()
        assert (first["MASK_KIND"], first["REGION_PROMPTS"]) == (b"soft", b"b = c")
        assert (first["PADDING_MASK_CROP"], first["WIDTH"], first["HEIGHT"]) == (8, 64, 32)
        assert (second["MASK"] == 255).all()
        assert second["MASK_FILL"] == b"noise"
        assert (second["MASK_FEATHER"], second["MASK_TONE"]) == (16, b"matched")
        assert not third["MASK"].any()
        assert third["EXTEND"].tolist() == [[8, 0, 0, 4]]

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["--extend", "8,0,x,0"], "--extend is '8,0,x,0'; accepted: left,top,right,bottom"),
            (
                ["--rect", "0,0,8,8", "--region", "m.png"],
                "--region is 'm.png'; accepted: FILE=PROM",
            ),
            (["--rect", "1,2,3"], "--rect is '1,2,3'; accepted: x,y,width,height"),
            (["--rect", "0,0,99,9"], "is not within the image of 48 x 32 pixels"),
            ([], "there is no mask"),
        ],
        ids=["room", "region", "rectangle", "outside", "nothing"],
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
        words = ["templates", "add", str(tmp_path / "i.png"), "--prompt", "a", "--negative-prompt"]
        words += ["b", "--lora", "ink:0.5", "--control", f"edges={tmp_path / 'i.png'},scale=0.5"]
        words += ["--syntax", "plain", "--clip-skip", "1"]
        assert run.invoke(cli.app, words).exit_code == 0
        sent = transport.sent("templates")[1]
        assert json.loads(sent["CONTROLS"])[0]["name"] == "edges"
        assert sent["CONTROL_IMAGES"].shape == (1, 1, 8, 16, 3)
        assert (sent["PROMPT"], sent["NEGATIVE_PROMPT"]) == (b"a", b"b")
        assert (sent["PROMPT_SYNTAX"], sent["CLIP_SKIP"]) == (b"plain", 1)
        assert json.loads(sent["LORAS"]) == [{"name": "ink", "weight": 0.5}]
        result = run.invoke(cli.app, ["templates", "list"])
        assert "not recorded" in result.output
        assert "memory: 1 of 2 MB" in result.output
        assert "reads that memory answered: 25.0 %" in result.output
        result = run.invoke(cli.app, ["templates", "evict", "abc", "--json"])
        assert json.loads(result.stdout) == {"template": "abc", "bytes": 7}
        assert len(transport.sent("templates")) == 4

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
        settings += ",mode=3,guess_mode=true"
        line = ["generate", "a"] if command == "generate" else ["edit", str(file), "a"]
        line += [] if command == "generate" else ["--rect", "0,0,8,8"]
        line += ["--control", f"edges={file},{settings}", "--control", f"depth={file},mode=tile"]
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
            "mode": 3,
            "guess_mode": True,
        }
        assert depth == {"name": "depth", "scale": 1.0, "start": 0.0, "end": 1.0} | {"mode": "tile"}
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
            "edges=i.png,guess_mode=1",
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


def test_the_library_alone_says_what_the_command_needs() -> None:
    code = (
        "import sys; sys.modules['typer'] = None; from tessera_client.command import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith('pip install ".[client]" in a checkout of Tessera')
