"""The steps of the TensorRT check that need no server, with a fake compiler in TensorRT's place."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.tensorrt import bundles, run, versions
from tessera.manifest import read_manifest, write_manifest
from tessera_build.checkpoint import open_checkpoint
from tessera_build.verify import PICTURE
from tests.fakes.compiler import FakeCompiler
from tests.samples.bundles import Small

Run = Callable[..., tuple[int, list[dict[str, Any]]]]
GRAPHS = ("text_encoder", "vae_decoder")
FAKE = "tests.fakes.compiler:FakeCompiler"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other when networks are this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def step(tmp_path: Path) -> Run:
    """Runs a step on small networks; its exit status and its rows."""

    def call(module: str, *more: str) -> tuple[int, list[dict[str, Any]]]:
        out = tmp_path / "out.json"
        words = [f"--work={tmp_path}", f"--compiler={FAKE}", "--engine=onnxruntime", "--tiny"]
        main = import_module(f"bench.tensorrt.{module}").main
        status = main([f"--out={out}", "--bundle=sd15", *words, *more])
        return status, json.loads(out.read_text())["rows"]

    return call


@pytest.fixture
def bundle(small: Callable[[str], Small], tmp_path: Path) -> Path:
    """A bundle of two graphs where the steps look for it."""
    folder = tmp_path / "sd15"
    shutil.copytree(small("sd15").bundle, folder)
    manifest = read_manifest(folder)
    few = {name: manifest.graphs[name] for name in GRAPHS}
    write_manifest(folder, dataclasses.replace(manifest, graphs=few))
    return folder


def test_versions(step: Run, tmp_path: Path) -> None:
    (tmp_path / versions.HOST).write_text("image serve: 9.9 GB\n")
    status, rows = step("versions")
    values = {row["what"]: row["value"] for row in rows}
    assert status == 0
    assert values["host: image serve"] == "9.9 GB"
    assert values["compiler"] == "sm_90, TensorRT 11.4.0"
    assert values["tensorrt-cu13"] == "none"
    assert "flags" in values["tritonserver"]


def test_a_missing_compiler_is_told_and_the_rest_is_kept(step: Run) -> None:
    status, rows = step("versions", "--compiler=tests.fakes.compiler:Nobody")
    assert status == 1
    assert rows[-1]["note"].startswith("FAILED: module 'tests.fakes.compiler' has no attribute")
    assert len(rows) > 10


def test_compiling_refits_and_parity(
    step: Run, bundle: Path, small: Callable[[str], Small]
) -> None:
    status, rows = step("compiled")
    assert status == 0, rows
    assert {row["what"] for row in rows} == set(GRAPHS)
    assert all(max(row["built"], row["refitted"]) < row["accepted"] for row in rows)
    status, rows = step("refits")
    assert status == 0, rows
    assert {row["what"] for row in rows} == {"text_encoder"}
    assert all(row["effect"] > 0 == row["A_again"] == row["base_again"] for row in rows)
    whole = read_manifest(small("sd15").bundle)
    write_manifest(bundle, whole)  # a picture takes all of them
    status, rows = step("parity")
    assert status == 0, rows
    assert {row["what"] for row in rows} == {*whole.graphs, PICTURE}
    assert all(row["difference"] <= row["accepted"] for row in rows)


def test_a_bundle_is_made_of_a_checkpoint_that_the_builder_takes(
    step: Run, small: Callable[[str], Small], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All but the build itself, which takes minutes: what it is given opens as a checkpoint."""
    asked = list[str]()

    def build(*words: str) -> None:
        command, checkpoint, *options = words
        asked.extend((command, *options))
        pipe, variant = open_checkpoint(Path(checkpoint))
        assert variant == "sd15"
        assert tuple(pipe.unet.config.block_out_channels) == (32, 32, 64, 64)
        shutil.copytree(small("sd15").bundle, tmp_path / "sd15")

    monkeypatch.setattr(bundles, "_run", build)
    status, (row,) = step("bundles")
    assert status == 0, row
    assert row["note"].startswith("sd15, ")
    assert asked == ["bundle", "--out", str(tmp_path / "sd15"), "--steps=30"]
    assert step("bundles")[0] == 0  # the bundle that is there is kept
    assert len(asked) == 4


class Forgetful(FakeCompiler):
    """Its engines keep what an earlier refit has changed and a later one has not."""

    def open(self, *arguments: Any) -> Any:
        engine = super().open(*arguments)
        refit, kept = engine.refit, list[Any]()

        def keep(weights: Any) -> None:
            kept.append(weights)
            name, weight = next(iter(weights.items()))
            refit({**weights, name: weight + 1e-3 * len(kept)})

        engine.refit = keep
        return engine


def test_a_refit_that_depends_on_earlier_ones_fails(step: Run, bundle: Path) -> None:
    assert step("compiled")[0] == 0
    status, rows = step("refits", f"--compiler={__name__}:Forgetful")
    assert status == 1
    assert rows[-1]["note"] == "FAILED: A after B differs from A before it"


def test_a_graph_that_does_not_compile_stops_no_other(
    step: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = FakeCompiler.build

    def refuse(self: FakeCompiler, graph: Path, key: Any, cache: Path) -> bytes:
        if key.graph == "vae_decoder":
            raise RuntimeError("no kernel")
        return build(self, graph, key, cache)

    monkeypatch.setattr(FakeCompiler, "build", refuse)
    status, rows = step("compiled")
    assert status == 1
    found = {row["what"]: row.get("note", "compiled") for row in rows}
    assert found == {"vae_decoder": "FAILED: no kernel", "text_encoder": "compiled"}


def test_every_bundle_has_every_step() -> None:
    names = [step.name for step in run.steps()]
    parts = ("bundle", "compile", "refit", "parity", "serve")
    assert names == ["versions", *(f"{p}-{b}" for b in ("demo", "sd15", "sdxl") for p in parts)]
    assert all(step.command[2].startswith("bench.tensorrt.") for step in run.steps())
    assert sum(step.limit_s for step in run.steps()) > run.SECONDS > 3600


def test_the_report_is_one_file(tmp_path: Path) -> None:
    for ending in ("txt", "json", "log"):
        (tmp_path / f"{run.NAME}.{ending}").write_text(ending)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "pictures" / "sd15-torch.png")
    with tarfile.open(run.pack(tmp_path, tmp_path)) as tar:
        assert tar.getnames() == [
            "verify.txt",
            "verify.json",
            "verify.log",
            "pictures/sd15-torch.png",
        ]
