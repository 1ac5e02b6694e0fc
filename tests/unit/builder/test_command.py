"""What `tessera-build` prints, and what its options accept."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tessera.manifest import Verification
from tessera.terminal.console import Console
from tessera_build import cli, options
from tessera_build.precision import PRECISIONS
from tessera_build.reports import verification_table

NARROW = {"COLUMNS": "80"}


@pytest.mark.parametrize("name", ["a[/b]", "[red]x[/red]", "a:bread:b", "{x}", "\\[/v]"])
def test_paths_are_printed_as_they_were_typed(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = f"{tmp_path}/{name}.ckpt"
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).touch()
    monkeypatch.setattr(sys, "argv", ["tessera-build", "bundle", file, "-o", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"tessera-build: {file} ")


def test_names_of_add_ons_are_printed_as_they_were_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["tessera-build", "bundle", ".", "-o", "x", "--controlnet", "[/a]:bread:"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit):
        cli.main()
    said = "tessera-build: --controlnet is '[/a]:bread:'; accepted: NAME=PATH\n"
    assert capsys.readouterr().err == said


def test_precisions_are_those_that_can_be_compiled() -> None:
    assert set(options.Precision) == set(PRECISIONS)
    refused = CliRunner().invoke(cli.app, ["compile", "b", "--precision", "int8"], env=NARROW)
    assert refused.exit_code == 2
    assert "'fp16', 'bf16', 'fp32'" in " ".join(refused.stderr.replace("│", " ").split())


def test_help_is_grouped() -> None:
    shown = CliRunner().invoke(cli.app, ["bundle", "--help"], env=NARROW).output
    for panel in ("ControlNets and LoRAs", "Defaults of requests", "Limits"):
        assert f"─ {panel} ─" in shown
    assert "…" not in shown


def test_the_table_of_a_verification_fits_80_columns() -> None:
    names = ["unet_encoder", "controlnet_silhouette_hint@tensorrt"]
    found = dict(zip(names, [Verification(1e-6, 2), Verification(0.5, 2)], strict=True))
    table = verification_table("a[/b]", found, dict.fromkeys(names, 1e-4))
    console, written = Console(), io.StringIO()
    console.file, console.width = written, 80
    console.print(table)
    title, _, good, bad = written.getvalue().splitlines()
    assert title.strip() == "a[/b]"
    assert good.split() == [names[0], "2", "1.0e-06", "1e-04", "well"]
    assert bad.split() == [names[1], "2", "5.0e-01", "1e-04", "differs"]
