"""The settings of a server: defaults, what the environment may say, and the way from one to the
other.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.contract import EditQuality
from tessera.engines import registry
from tessera.errors import BundleError
from tessera.shared.request_log import LogFormat
from tessera.shared.settings import (
    AdapterSettings,
    ControlSettings,
    EngineKind,
    LoraPath,
    PlaceSettings,
    ServerSettings,
    TemplateSettings,
    default_board,
)

BUNDLE = {"TESSERA_BUNDLE": "/bundle"}
VARIABLES = {
    "TESSERA_BUNDLE",
    "TESSERA_THREADS",
    "TESSERA_ENGINE",
    "TESSERA_TORCH_COMPILE",
    "TESSERA_BOARD",
    "TESSERA_TRACE",
    "TESSERA_PLACE_UNET",
    "TESSERA_PLACE_VAE",
    "TESSERA_PLACE_TEXT_ENCODERS",
    "TESSERA_TEMPLATES",
    "TESSERA_TEMPLATE_DISK",
    "TESSERA_SLOTS",
    "TESSERA_MAX_STEPS",
    "TESSERA_MAX_QUEUE",
    "TESSERA_LOG_FORMAT",
    "TESSERA_LOG_PROMPTS",
    "TESSERA_EDIT_QUALITY",
    "TESSERA_TEMPLATE_MEMORY",
    "TESSERA_TEMPLATE_SIZE",
    "TESSERA_TEMPLATE_DEVICE",
    "TESSERA_ADAPTERS",
    "TESSERA_ADAPTER_MEMORY",
    "TESSERA_LORA_PATH",
    "TESSERA_CONTROL_MEMORY",
    "TESSERA_CONTROL_PINNED",
}
"""Operators set these for a plain tritonserver: the names are a promise."""


def test_a_bundle_is_all_that_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    settings = ServerSettings.from_environment(BUNDLE)
    assert settings == ServerSettings(Path("/bundle"))
    assert (settings.threads, settings.engine, settings.torch_compile) == (0, "auto", False)
    assert settings.templates.folder == Path("/cache/tessera/templates")
    assert settings.board == default_board()
    assert settings.trace is None


def test_without_a_bundle_it_says_what_to_set() -> None:
    for variables in ({}, {"TESSERA_BUNDLE": ""}):
        with pytest.raises(BundleError, match="TESSERA_BUNDLE is not set; set it to the folder of"):
            ServerSettings.from_environment(variables)


def test_this_process_s_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_BUNDLE", "/b")
    monkeypatch.setenv("TESSERA_THREADS", "3")
    assert ServerSettings.from_environment().threads == 3


def test_a_variable_that_is_empty_leaves_the_default() -> None:
    empty = dict.fromkeys(VARIABLES, "")
    assert ServerSettings.from_environment(empty | BUNDLE) == ServerSettings(Path("/bundle"))


BYTES = "a number of bytes, an integer from 0"
BAD = {
    "TESSERA_THREADS": ("-1", "an integer from 0"),
    "TESSERA_ENGINE": ("tensorflow", "auto, onnxruntime, tensorrt, torch"),
    "TESSERA_TORCH_COMPILE": ("yes", "0, 1"),
    "TESSERA_TEMPLATE_DISK": ("20 GB", BYTES),
    "TESSERA_MAX_STEPS": ("-1", "an integer from 0"),
    "TESSERA_MAX_QUEUE": ("many", "an integer from 0"),
    "TESSERA_EDIT_QUALITY": ("slow", "fast, balanced, best"),
    "TESSERA_TEMPLATE_MEMORY": ("1e9", BYTES),
    "TESSERA_TEMPLATE_SIZE": ("1_000", BYTES),
    "TESSERA_TEMPLATE_DEVICE": ("-5", BYTES),
    "TESSERA_ADAPTER_MEMORY": ("inf", BYTES),
    "TESSERA_LOG_FORMAT": ("xml", "text, json"),
    "TESSERA_LOG_PROMPTS": ("yes", "0, 1"),
    "TESSERA_LORA_PATH": ("sideways", "auto, refit, side"),
    "TESSERA_CONTROL_MEMORY": ("much", BYTES),
    "TESSERA_PLACE_UNET": ("gpu:0,gpu", "auto, cpu or gpu:N, or several with , between"),
    "TESSERA_PLACE_VAE": ("cuda:0", "auto, cpu or gpu:N"),
    "TESSERA_PLACE_TEXT_ENCODERS": ("cpu,cpu", "auto, cpu or gpu:N"),
}


@pytest.mark.parametrize(("variable", "value", "accepted"), [(k, *v) for k, v in BAD.items()])
def test_bad_values_are_named_with_what_is_accepted(
    variable: str, value: str, accepted: str
) -> None:
    with pytest.raises(BundleError) as caught:
        ServerSettings.from_environment(BUNDLE | {variable: value})
    assert str(caught.value) == f"{variable} is {value!r}; accepted: {accepted}"


def test_a_folder_with_the_separator_in_its_name_is_refused() -> None:
    settings = ServerSettings(Path("/b"), adapters=AdapterSettings((Path("/a:b"),)))
    with pytest.raises(BundleError, match="TESSERA_ADAPTERS cannot hold '/a:b'; accepted: folders"):
        settings.to_environment()


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/:,"), min_size=1, max_size=20)
PATHS = NAMES.map(lambda name: Path("/") / name)
NUMBERS = st.integers(0, 2**63)
PLACES = st.sampled_from(("auto", "cpu")) | st.integers(0, 99).map("gpu:{}".format)
SETTINGS = st.builds(
    ServerSettings,
    bundle=PATHS,
    threads=NUMBERS,
    engine=st.sampled_from(EngineKind),
    torch_compile=st.booleans(),
    max_steps=NUMBERS,
    slots=NUMBERS,
    max_queue=NUMBERS,
    edit_quality=st.sampled_from(EditQuality),
    board=PATHS,
    trace=st.none() | PATHS,
    log_format=st.sampled_from(LogFormat),
    log_prompts=st.booleans(),
    places=st.builds(
        PlaceSettings, st.lists(PLACES, min_size=1).map(tuple), vae=PLACES, text_encoders=PLACES
    ),
    templates=st.builds(TemplateSettings, PATHS, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    adapters=st.builds(
        AdapterSettings, st.lists(PATHS).map(tuple), NUMBERS, st.sampled_from(LoraPath)
    ),
    controls=st.builds(ControlSettings, NUMBERS, st.lists(NAMES).map(tuple)),
)


@given(SETTINGS)
def test_the_way_to_the_environment_and_back(settings: ServerSettings) -> None:
    variables = settings.to_environment()
    assert variables.keys() == VARIABLES - ({"TESSERA_TRACE"} if settings.trace is None else set())
    assert ServerSettings.from_environment(variables) == settings


@given(st.dictionaries(st.sampled_from(sorted(VARIABLES)), st.text(max_size=12)))
def test_any_environment_is_settings_or_an_error_that_names_a_variable(
    variables: dict[str, str],
) -> None:
    try:
        settings = ServerSettings.from_environment(variables)
    except BundleError as error:
        assert str(error).split()[0] in VARIABLES
        return
    assert ServerSettings.from_environment(settings.to_environment()) == settings


def test_what_lies_beside_the_board_is_named_after_it() -> None:
    settings = ServerSettings(Path("/b"), board=Path("/shm/board"))
    assert settings.control_table == Path("/shm/board.controls")
    assert settings.costs == Path("/shm/board.costs")


def test_every_kind_of_engine_can_be_opened_but_auto_which_is_one_of_them(tmp_path: Path) -> None:
    assert {*registry._KINDS, EngineKind.AUTO} == set(EngineKind)
    assert registry.chosen_kind(tmp_path, EngineKind.TORCH) is EngineKind.TORCH
    assert registry.chosen_kind(tmp_path) in registry._KINDS


def test_settings_stay_as_they_are_made() -> None:
    settings: Any = ServerSettings(Path("/b"))
    for part in (settings, settings.templates, settings.adapters, settings.controls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.memory = 1


def test_no_other_module_reads_variables_of_tessera() -> None:
    root = Path(__file__).resolve().parents[3] / "python_backend"
    users = {p.name: p.read_text() for p in root.rglob("*.py") if "os.environ" in p.read_text()}
    assert users.keys() == {
        "settings.py",  # reads them
        "tritonserver.py",  # hands all on to the server it starts
        "onnxruntime.py",  # sets a variable of the library, before the library is loaded
    }
    assert "TESSERA" not in users["onnxruntime.py"]
