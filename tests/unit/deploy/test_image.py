"""The Dockerfile, as far as a machine without Docker can tell: what it copies and starts."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WRITTEN = "/var/tessera"


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """(instruction, value) of each stage, with those of the stage that it is built on."""
    with (ROOT / "Dockerfile").open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for step in structure:
        kind, value = step["instruction"], step["value"]
        if kind == "FROM":
            base, _, name = value.partition(" AS ")
            current = found[name] = [*found.get(base, []), (kind, value)]
        elif kind not in ("COMMENT", "ARG"):
            current.append((kind, value))
    return found


def values(stage: list[tuple[str, str]], kind: str) -> list[str]:
    return [value for found, value in stage if found == kind]


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path out."""
    parts = PurePosixPath(path).parts
    for pattern in (ROOT / ".dockerignore").read_text().split():
        anywhere = pattern.startswith("**/")
        names = parts if anywhere else parts[:1]
        if any(fnmatch(name, pattern.removeprefix("**/")) for name in names):
            return True
    return False


def test_there_is_a_stage_to_serve_and_it_is_the_default(stages: dict[str, Any]) -> None:
    assert list(stages) == ["installed", "verify", "ray", "serve"]


def test_the_base_is_named_once(stages: dict[str, Any]) -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^ARG TRITON=(\d\d\.\d\d)$", text, re.MULTILINE) == ["26.11"]
    (base,) = values(stages["installed"], "FROM")
    assert base == "nvcr.io/nvidia/tritonserver:${TRITON}-py3 AS installed"


@pytest.mark.parametrize("stage", ["verify", "serve"])
def test_what_is_copied_is_there_and_not_ignored(stages: dict[str, Any], stage: str) -> None:
    copied = [word for v in values(stages[stage], "COPY") for word in v.split()[:-1]]
    assert {"pyproject.toml", "python_backend", "model_repository"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), path
        assert not ignored(path), path


def test_everything_that_the_package_is_built_of_is_copied(stages: dict[str, Any]) -> None:
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    wheel = hatch["build"]["targets"]["wheel"]
    needed = {Path(p).parts[0] for p in (*wheel["packages"], *wheel["force-include"])}
    needed |= {PROJECT["readme"], *PROJECT["license-files"]}
    copied = {w for v in values(stages["installed"], "COPY") for w in v.split()[:-1]}
    assert needed <= copied


def test_what_must_not_be_in_an_image_is_ignored() -> None:
    assert all(ignored(path) for path in (".git", ".venv", "out", "bundles/demo", "a/__pycache__"))
    assert not ignored("build/demo_model/base/unet")


def test_the_extras_exist(stages: dict[str, Any]) -> None:
    (run,) = values(stages["serve"], "RUN")
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', run)
    assert set(extras.split(",")) == {"client", "build", "fleet", "serve", "tensorrt"}
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_a_fleet_of_kuberay_has_ray(stages: dict[str, Any]) -> None:
    _, run = values(stages["ray"], "RUN")
    assert run == 'pip install --editable ".[ray]"'
    assert any(p.startswith("ray[serve]==") for p in PROJECT["optional-dependencies"]["ray"])
    assert values(stages["ray"], "USER")[-1] == "1000:1000"


def test_commands_of_the_build_are_there(stages: dict[str, Any]) -> None:
    (run,) = values(stages["serve"], "RUN")
    programs = {shlex.split(line)[0] for line in run.split("&&")}
    assert programs == {"pip", "python3", "tessera-build", "install"}
    assert "tessera-build" in PROJECT["scripts"]


@pytest.mark.parametrize("stage", ["verify", "serve"])
def test_nobody_is_root_and_one_folder_is_written(stages: dict[str, Any], stage: str) -> None:
    assert values(stages[stage], "USER")[-1] == "1000:1000", "a number, for runAsNonRoot"
    assert values(stages[stage], "VOLUME") == [WRITTEN]
    (run,) = values(stages[stage], "RUN")
    assert f"install --directory --owner=1000 --group=1000 {WRITTEN}" in run
    environment = " ".join(values(stages[stage], "ENV"))
    assert f"HOME={WRITTEN} XDG_CACHE_HOME={WRITTEN}" in environment


def test_the_entry_points_exist(stages: dict[str, Any]) -> None:
    (serve,) = values(stages["serve"], "ENTRYPOINT")
    program, *options = json.loads(serve)
    assert program in PROJECT["scripts"]
    assert options == ["--host=0.0.0.0"], "others than the container have to reach it"
    (bundle,) = values(stages["serve"], "CMD")
    folder = bundle.strip('[]"')
    assert f"--out {folder}" in values(stages["serve"], "RUN")[0]
    (verify,) = values(stages["verify"], "ENTRYPOINT")
    module = verify.strip("[]").replace('"', "").split(", ")[-1]
    assert find_spec(module)


def test_ports_and_health_are_those_of_the_server(stages: dict[str, Any]) -> None:
    from tessera.serve.tritonserver import Ports, model_repository, models_of

    assert values(stages["serve"], "EXPOSE") == [" ".join(map(str, vars(Ports()).values()))]
    (health,) = values(stages["serve"], "HEALTHCHECK")
    (models,) = re.findall(r"\{([\w,]+)\}", health)
    assert set(models.split(",")) <= set(models_of(model_repository()))
    assert f"localhost:{Ports.http}/" in health
