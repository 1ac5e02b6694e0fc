"""Previews in the terminal and in files."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tessera.terminal.console import Console
from tessera_client import Preview, cli, connection
from tessera_client.cli_progress import Screen, half_blocks
from tests.fakes.transport import FakeTransport
from tests.samples.waiting import until


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    fake = FakeTransport(during=lambda: until(lambda: len(fake.sent("jobs")) >= 5))
    monkeypatch.setattr(connection, "connect", lambda address: fake)
    return fake


def test_previews_are_written_to_a_file(transport: FakeTransport, tmp_path: Path) -> None:
    out, file = tmp_path / "o.png", tmp_path / "new" / "p.png"
    arguments = ["generate", "a", "-o", str(out), "--preview-file", str(file)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    with Image.open(file) as preview:
        assert preview.size == (16, 8)
        assert preview.getpixel((0, 0)) == (2, 2, 2)
    assert [p.name for p in file.parent.iterdir()] == ["p.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preview"], "--preview needs a terminal; use --preview-file FILE"),
        (["--preview-file", "p.tex"], "--preview-file is p.tex; accepted: a name like preview.png"),
    ],
    ids=["no terminal", "kind of file"],
)
def test_a_preview_that_cannot_be_shown(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(cli.app, ["generate", "a", *arguments])
    assert result.exit_code == 2
    assert sentence in result.output


def test_the_terminal_shows_the_picture(
    transport: FakeTransport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable, value in {"TERM": "xterm", "FORCE_COLOR": "1", "COLUMNS": "120"}.items():
        monkeypatch.setenv(variable, value)
    terminal, written = Console(stderr=True), io.StringIO()
    terminal.file = written
    monkeypatch.setattr(cli, "Screen", partial(Screen, console=terminal))
    arguments = ["generate", "a", "-o", str(tmp_path / "o.png"), "--preview"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert written.getvalue().count("\N{UPPER HALF BLOCK}") >= 16 * 4


def test_each_character_has_two_pixels() -> None:
    image = np.zeros((3, 2, 3), np.uint8)
    image[0], image[1], image[2] = 255, (255, 0, 0), (0, 0, 255)
    text = half_blocks(Preview(1, 2, image, width=2, height=3))
    assert text.plain == "\N{UPPER HALF BLOCK}" * 2 + "\n" + "\N{UPPER HALF BLOCK}" * 2 + "\n"
    assert len(text.spans) == 4
    large = Preview(1, 2, image, width=800, height=1200)
    lines = half_blocks(large).plain.splitlines()
    assert (len(lines), len(lines[0])) == (24, 32)
