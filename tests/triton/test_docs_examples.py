"""Every example of README.md and docs/user runs as it stands there, against the demo bundle. Those
that cannot are listed here, with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.server import ROOT, Server
from tessera_client import Client, cli
from tests.samples.gateways import RunningGateway, gateway
from tests.samples.waiting import PATIENCE_S

PAGES = {path.name: path for path in [ROOT / "README.md", *(ROOT / "docs" / "user").glob("*.md")]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
COMMENT = re.compile(r"\s{2,}#.*$")

NOT_RUN = {
    "make ": "installs a whole environment; CI does it",
    "tessera-build ": "takes minutes, or a GPU: tests/unit/builder, tests/triton/test_examples.py",
    "tessera-serve ": "runs until it is ended: tests/triton/test_serve.py",
    "tessera-gateway ": "runs until it is ended: tests/triton/test_serve_gateway.py",
    "tessera jobs JOB_ID": "needs a job that runs: tests/triton/test_jobs.py",
    'tessera generate "a small green circle at the top on a white background" --preview': (
        "needs a terminal: tests/unit/client/test_cli_progress.py"
    ),
    'tessera generate "a house" --control all=edges.png': (
        "needs a Union: tests/triton/test_variants.py"
    ),
    'tessera edit photo.png "a red door" --mask mask.png --control inpaint=': (
        "needs an inpainting ControlNet: tests/triton/test_control_input.py"
    ),
    "{": "a line of a file or an answer, no command",
}
"""Beginnings of lines."""
CONTEXT = {
    "edits.md": "from PIL import Image\nfrom tessera_client import Client\nclient = Client()\n"
    "image = Image.open('photo.png').convert('RGB')\nmask = Image.open('mask.png')\n"
}
"""What the text of a page says before its program."""


def programs(language: str) -> list[tuple[str, str]]:
    return [
        (name, text)
        for name, path in PAGES.items()
        for found, text in FENCE.findall(path.read_text())
        if found == language
    ]


def commands() -> dict[str, list[str]]:
    """Lines of each page, in their order; a line that an earlier page has is left out."""
    seen: set[str] = set()
    lines: dict[str, list[str]] = {}
    for name, path in PAGES.items():
        text = re.sub(r"\\\n\s*", "", path.read_text())
        plain = [body for language, body in FENCE.findall(text) if not language]
        code = "\n".join([*INDENTED.findall(FENCE.sub("", text)), *plain])
        for line in code.splitlines():
            command = COMMENT.sub("", line).strip().replace(".venv/bin/", "")
            if command and not command.startswith(tuple(NOT_RUN)) and command not in seen:
                seen.add(command)
                lines.setdefault(name, []).append(command)
    return lines


COMMANDS = commands()


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    log = tmp_path_factory.mktemp("gateway") / "log"
    with gateway(server.grpc, log, f"--kserve={server.http}") as running:
        yield running


@pytest.fixture(scope="module")
def kept(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures that examples are about."""
    folder = tmp_path_factory.mktemp("pictures")
    with Client(server.http, timeout=PATIENCE_S) as client:
        picture = client.generate("a large red circle at the left on a blue background", steps=4)
        client.register_template(picture.image, steps=4)  # a page's commands ask for one by its ID
    picture.image.save(folder / "first.png")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (8, 32, 72, 96))
    mask.save(folder / "mask.png")
    photo = picture.image.convert("RGBA")
    photo.putalpha(Image.fromarray(255 - np.asarray(mask)))
    photo.save(folder / "photo.png")
    picture.image.save(folder / "edges.png")
    (folder / "pictures").mkdir()
    picture.image.save(folder / "pictures" / "one.png")
    mask.save(folder / "pictures" / "one.mask.png")
    (folder / "pictures" / "one.txt").write_text("a large green square on a blue background")
    page = PAGES["client.md"].read_text()
    lines = [line for line in INDENTED.findall(page) if line.startswith("{")]
    (folder / "requests.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def here(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def placed(text: str, server: Server, front: RunningGateway) -> str:
    """An example with the addresses of these servers."""
    for written, real in (
        ("Client()", f'Client("{server.http}")'),
        ("http://localhost:8000", server.http),
        ("grpc://localhost:8001", server.grpc),
        ("localhost:8000", server.http.removeprefix("http://")),
        ("http://localhost:8080", front.url),
        ("localhost:8080", front.url.removeprefix("http://")),
        (".venv/bin/python", sys.executable),
    ):
        text = text.replace(written, real)
    return text


def ended(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ.copy(),
    )


def run(command: list[str], folder: Path) -> str:
    done = ended(command, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


PYTHON, SHELL = programs("python"), programs("sh")


@pytest.mark.parametrize("number", range(len(PYTHON)), ids=lambda n: f"{PYTHON[n][0]}-{n}")
def test_programs(server: Server, front: RunningGateway, here: Path, number: int) -> None:
    name, text = PYTHON[number]
    program = placed(CONTEXT.get(name, "") + text, server, front)
    done = ended([sys.executable, "-c", program], here)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(len(SHELL)), ids=lambda n: f"{SHELL[n][0]}-{n}")
def test_scripts(server: Server, front: RunningGateway, here: Path, number: int) -> None:
    done = ended(["sh", "-ec", placed(SHELL[number][1], server, front)], here)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(server: Server, front: RunningGateway, here: Path, name: str) -> None:
    for line in COMMANDS[name]:
        if line.startswith("curl "):
            answer = run(["sh", "-ec", placed(line, server, front)], here)
            assert '"error"' not in answer[:200], answer[:500]
            continue
        program, *words = shlex.split(line)
        assert program == "tessera", f"{line}: neither run nor listed"
        if "ID" in words:
            with Client(server.http) as client:
                words[words.index("ID")] = client.templates()["templates"][0]["template"]
        asked = CliRunner().invoke(cli.app, words, env={"TESSERA_URL": server.http})
        assert asked.exit_code == 0, f"{line}: {asked.output}"


@pytest.mark.parametrize("start", NOT_RUN)
def test_what_is_not_run_is_there(start: str) -> None:
    texts = "\n".join(path.read_text() for path in PAGES.values()).replace(".venv/bin/", "")
    assert f"\n    {start}" in texts


def test_every_page_with_code_is_run() -> None:
    with_code = {name for name, path in PAGES.items() if "```" in path.read_text()}
    run_here = {name for name, _ in (*PYTHON, *SHELL)} | set(COMMANDS)
    assert with_code <= run_here
