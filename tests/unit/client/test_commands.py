"""What the commands of `tessera` print: texts as they are, tables that are whole on a narrow
terminal, options and their panels.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tessera.contract import SCHEDULERS, SPREADS, EditQuality, LoraPolicy, Mode, Scheduler
from tessera_client import cli, connection
from tests.fakes.transport import INFO, FakeTransport

run = CliRunner()
NARROW = {"COLUMNS": "80"}
STRANGE = ["[/x]", "[red]x[/red]", "a:bread:b", "{x}", "[[y]]", "[link=z]w", "\\[/v]"]


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    fake = FakeTransport()
    monkeypatch.setattr(connection, "connect", lambda address: fake)
    return fake


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("name", STRANGE)
def test_paths_are_printed_as_they_were_typed(tmp_path: Path, name: str) -> None:
    out = tmp_path / name / "o.png"
    done = run.invoke(cli.app, ["generate", "a", "-o", str(out), "--job-id", name])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{out}  seed 7, ")
    files = ["-o", str(out), "--sheet", f"{out}.sheet.png"]
    edited = run.invoke(cli.app, ["edit", str(out), "a", "--rect", "0,0,4,4", *files])
    assert edited.exit_code == 0, edited.output
    assert f"{out}.sheet.png  before and after\n" in edited.stderr


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("name", STRANGE)
def test_errors_repeat_what_was_typed(name: str) -> None:
    asked = run.invoke(cli.app, ["generate", "a", "--lora", f"{name}:c:d"])
    assert asked.exit_code == 2
    assert f"--lora is {f'{name}:c:d'!r}; accepted: NAME[:WEIGHT[:TEXT_WEIGHT]]" in asked.stderr
    asked = run.invoke(cli.app, ["generate", "a", "--control", f"={name}"])
    assert f"--control is {f'={name}'!r}; accepted: NAME=FILE[,scale=S]" in asked.stderr


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize(
    "words", [["adapters", "list"], ["templates", "list"], ["health"]], ids=" ".join
)
def test_tables_are_whole_at_80_columns(words: list[str]) -> None:
    printed = run.invoke(cli.app, words, env=NARROW).stdout
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    whole = "".join(run.invoke(cli.app, words, env={"COLUMNS": "500"}).stdout.split())
    assert sorted("".join(printed.split())) == sorted(whole), "nothing is lost"


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("--scheduler", Scheduler),
        ("--lora-policy", LoraPolicy),
        ("--mode", Mode),
        ("--quality", EditQuality),
    ],
    ids=["scheduler", "policy", "mode", "quality"],
)
def test_options_that_are_choices(
    transport: FakeTransport, tmp_path: Path, option: str, names: type[Mode]
) -> None:
    image = str(tmp_path / "i.png")
    run.invoke(cli.app, ["generate", "a", "-o", image])
    line = ["edit", image, "a", "--rect", "0,0,4,4", "-o", image]
    for name in names:
        assert run.invoke(cli.app, [*line, option, name]).exit_code == 0
    refused = run.invoke(cli.app, [*line, option, "magic"], env={"COLUMNS": "300"})
    assert refused.exit_code == 2
    assert f"Invalid value for '{option}'" in refused.stderr
    assert all(f"'{name}'" in refused.stderr for name in names)
    sent = [call for call, _ in transport.calls].count("edit")
    assert sent == len(names)


@pytest.mark.parametrize("command", ["generate", "edit"])
def test_help_is_grouped(command: str) -> None:
    shown = run.invoke(cli.app, [command, "--help"], env=NARROW).output
    for panel in ("Picture", "Sampling", "LoRAs and ControlNets", "Server and output"):
        assert f"─ {panel} ─" in shown
    words = " ".join(shown.replace("│", " ").split())
    assert all(name in words for name in {spec.base for spec in SCHEDULERS.values()})
    assert all(f"_{spread}" in words for spread in SPREADS)


def test_formats_are_checked_before_anything_is_drawn(
    transport: FakeTransport, tmp_path: Path
) -> None:
    for out, more, sentence in (
        (tmp_path / "x.foo", [], "accepted: a name like out.png"),
        (tmp_path, [], "which is a folder"),
        (Path("-"), ["--json"], "exclude each other"),
        (Path("-"), ["--n", "2"], "exclude each other"),
    ):
        done = run.invoke(cli.app, ["generate", "a", "-o", str(out), *more])
        assert done.exit_code == 2
        assert sentence in done.stderr
    assert not transport.calls


def test_a_picture_on_standard_output(transport: FakeTransport) -> None:
    done = run.invoke(cli.app, ["generate", "a", "-o", "-"])
    assert done.exit_code == 0
    with Image.open(io.BytesIO(done.stdout_bytes)) as picture:
        assert picture.size == (8, 4)
    assert "seed 7" in done.stderr


def test_what_was_cut_from_a_prompt_is_said(
    transport: FakeTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INFO, "prompt_tokens_dropped", 5)
    done = run.invoke(cli.app, ["generate", "a", "-o", str(tmp_path / "o.png")])
    assert "the last 5 of the prompt's tokens had no effect" in done.stderr


def test_info(transport: FakeTransport) -> None:
    shown = run.invoke(cli.app, ["info"], env={"COLUMNS": "300"}).stdout
    for text in (
        "demo (sd15)",
        "steps 20",
        "clip_skip 0",
        "dpmpp_2m_karras",
        "ink",
        "edges",
        "2 waiting, 8 slots",
    ):
        assert text in shown
    assert "edm_euler" not in shown
    assert json.loads(run.invoke(cli.app, ["info", "--json"]).stdout)["model"] == "demo"
