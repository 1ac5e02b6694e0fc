"""`tessera-serve` without a server: what it prints, what it refuses, what it hands on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tessera.errors import TesseraError
from tessera.serve import cli
from tessera.serve.launch import Launch
from tessera.serve.log import pass_on
from tessera.shared.settings import EngineKind, LoraPath, ServerSettings
from tests.samples.bundles import Small

app = typer.Typer(add_completion=False)
app.command()(cli.serve)
run = CliRunner()
STRANGE = ["out/[/x]", "[red]x[/red]", "a:bread:b", "{x}", "[[y]]", "\\[/v]", "a\x1b[31mb"]


@pytest.mark.parametrize("name", STRANGE)
def test_paths_are_printed_as_they_were_typed(name: str) -> None:
    done = run.invoke(app, [name])
    assert done.exit_code == 1
    shown = name.replace("\x1b", "\\x1b")
    assert done.stderr == f"tessera-serve: {shown} is not a bundle: it has no bundle.json\n"


def test_bytes_in_a_path_that_are_no_text_are_shown(tmp_path: Path) -> None:
    done = run.invoke(app, [f"{tmp_path}/\udcff"])
    assert done.exit_code == 1
    assert done.stderr.endswith("/\\udcff is not a bundle: it has no bundle.json\n")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--engine", "magic"], "'auto', 'onnxruntime', 'tensorrt', 'torch'"),
        (["--lora-path", "sideways"], "'auto', 'refit', 'side'"),
        (["--torch-compile"], ""),
    ],
    ids=["engine", "path", "switch"],
)
def test_choices(options: list[str], sentence: str) -> None:
    done = run.invoke(app, ["nowhere", *options], env={"COLUMNS": "300"})
    assert done.exit_code == (2 if sentence else 1)
    assert sentence in done.stderr


def test_a_folder_that_cannot_be_handed_on_is_named() -> None:
    done = run.invoke(app, ["nowhere", "--adapters", "a:b"])
    assert done.exit_code == 1
    assert "TESSERA_ADAPTERS cannot hold" in done.stderr


def test_help_is_grouped() -> None:
    shown = run.invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    for panel in ("Addresses", "Engines", "LoRAs", "ControlNets", "Templates of edits"):
        assert f"─ {panel} ─" in shown
    assert "…" not in shown


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What would have been launched."""
    kept: list[Launch] = []

    def remember(self: Launch, *arguments: object, **options: object) -> int:
        kept.append(self)
        return 0

    monkeypatch.setattr(Launch, "run", remember)
    monkeypatch.setattr(cli, "_check_ports", lambda ports, host, gateway: None)
    return kept


def test_defaults_are_those_of_the_settings(
    launched: list[Launch], small: Callable[[str], Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TESSERA_TORCH_COMPILE", "TESSERA_TRACE", "TESSERA_SLOTS"):
        monkeypatch.delenv(variable, raising=False)
    bundle = small("sd15").bundle
    done = run.invoke(app, [str(bundle)])
    assert done.exit_code == 0, done.output
    assert launched[0].settings == ServerSettings(bundle.resolve())


def test_options_become_settings(
    launched: list[Launch], small: Callable[[str], Small], tmp_path: Path
) -> None:
    options = {
        "--threads": "3",
        "--engine": "torch",
        "--lora-path": "refit",
        "--adapters": str(tmp_path),
        "--adapter-memory": "0.5",
        "--pin": "edges",
        "--control-memory": "1.5",
        "--templates": str(tmp_path / "t"),
        "--template-disk": "0.25",
        "--trace": str(tmp_path / "trace.json"),
        "--drain-seconds": "12.5",
        "--stall-seconds": "7",
    }
    words = [word for pair in options.items() for word in pair]
    environment = {"TESSERA_TORCH_COMPILE": "1"}
    done = run.invoke(app, [str(small("sd15").bundle), *words], env=environment)
    assert done.exit_code == 0, done.output
    settings = launched[0].settings
    assert (launched[0].drain_seconds, launched[0].stall_seconds) == (12.5, 7)
    assert (settings.threads, settings.engine) == (3, EngineKind.TORCH)
    assert settings.torch_compile
    assert settings.trace == tmp_path / "trace.json"
    assert settings.adapters.path is LoraPath.REFIT
    assert (settings.adapters.folders, settings.adapters.memory) == ((tmp_path,), 5 * 10**8)
    assert (settings.controls.pinned, settings.controls.memory) == (("edges",), 15 * 10**8)
    assert (settings.templates.folder, settings.templates.disk) == (tmp_path / "t", 25 * 10**7)
    assert ServerSettings.from_environment(settings.to_environment()) == settings


NO_GPU = """\
W1127 04:07:13.7 10682 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory, \
pinned memory pool will not be available: CUDA driver version is insufficient for CUDA runtime"
E1127 04:07:13.7 10682 server.cc:241] "CudaDriverHelper has not been initialized."
E1127 04:08:06.7 10682 ensemble_scheduler.cc:1468] "unable to create stream for generate: CUDA \
driver version is insufficient for CUDA runtime version"
Error: Failed to initialize NVML
W1127 04:08:06.7 10682 metrics.cc:798] "DCGM unable to start: DCGM initialization error"
W1127 04:08:06.8 10682 pinned_memory_manager.cc:170] "failed to allocate pinned system memory: no \
pinned memory pool, falling back to non-pinned system memory"
"""
OTHERS = """\
E1127 04:08:06.7 10682 model_lifecycle.cc:642] "failed to load 'denoise' version 1: Internal: no"
E1127 04:08:06.7 10682 pb_stub.cc:1] "tessera: internal error 12\\nRuntimeError: CUDA error"
Error: Failed to initialize NVML Shared Library
W1127 04:08:06.7 10682 pinned_memory_manager.cc:99] "something else"
Traceback (most recent call last):

tessera: bytes that are no text: \ufffd
"""


def test_only_what_tells_of_a_missing_gpu_is_left_out() -> None:
    lines = (NO_GPU + OTHERS).replace("\ufffd", "\udcff").encode(errors="surrogateescape")
    said: list[str] = []
    pass_on(lines.splitlines(keepends=True), said.append)
    assert said == OTHERS.splitlines()


def test_ports_are_looked_at_before_anything_is_started(
    small: Callable[[str], Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*arguments: Any) -> None:
        raise TesseraError("--http-port 1 cannot be used: it is taken")

    monkeypatch.setattr(cli, "_check_ports", taken)
    done = run.invoke(app, [str(small("sd15").bundle)])
    assert done.exit_code == 1
    assert done.stderr.endswith("tessera-serve: --http-port 1 cannot be used: it is taken\n")


@pytest.mark.parametrize("option", ["--start-timeout", "--drain-seconds", "--stall-seconds"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_seconds_are_numbers_that_end(option: str, value: str) -> None:
    done = run.invoke(app, ["bundle", option, value])
    assert done.exit_code == 2
    assert option in done.stderr
