"""Bundles: whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import tessera_build.bundle as module
from tessera.errors import BundleError
from tessera.manifest import (
    Manifest,
    read_manifest,
)
from tessera.variants import VARIANTS
from tessera_build import exporter
from tessera_build.addons import AddOns
from tessera_build.bundle import Choices, build_bundle, is_current
from tessera_build.writing import locked
from tests.samples.bundles import Small

Make = Callable[[str], Small]
CHOICES = Choices(steps=4, lora_bound=0.3)


def build(checkpoint: Path, out: Path, fail_at: str = "", choices: Choices = CHOICES) -> Manifest:
    def progress(what: str, done: int, total: int) -> None:
        if what == fail_at:
            raise KeyboardInterrupt

    return build_bundle(checkpoint, out, choices=choices, progress=progress)


@pytest.mark.parametrize(
    ("variant", "scheduler", "guidance"),
    [("sd15", "dpmpp_2m_karras", 7.5), ("sd21", "ddim", 7.5), ("sdxl", "euler", 5.0)],
)
def test_the_checkpoint_decides(small: Make, variant: str, scheduler: str, guidance: float) -> None:
    manifest = read_manifest(small(variant).bundle)
    assert manifest.variant == variant
    assert (manifest.defaults.scheduler, manifest.defaults.guidance) == (scheduler, guidance)
    assert (manifest.defaults.steps, manifest.defaults.width) == (4, 128)
    assert (manifest.limits.min_size, manifest.limits.max_size) == (64, 256)
    assert (manifest.latents.pixels, manifest.latents.channels) == (8, 4)
    assert manifest.zero_negative == (variant == "sdxl")
    assert manifest.controlnets == (("all", "edges") if variant == "sdxl" else ("edges",))
    for name in manifest.files:  # where the checkpoint was must not make another bundle of it
        if name.endswith(".json"):
            assert str(small(variant).checkpoint) not in (small(variant).bundle / name).read_text()
    folders = {name.split("/")[0] for name in manifest.files}
    assert folders == {"graphs", "networks", "scheduler", *VARIANTS[variant].tokenizers}


def test_a_bundle_is_current_until_something_changes(small: Make, copy: Path) -> None:
    bundle, addons = small("sd15").bundle, small("sd15").addons
    assert is_current(bundle, copy, CHOICES, addons)
    assert not is_current(bundle, copy, Choices(steps=5), addons)
    assert not is_current(bundle, copy, CHOICES)
    renamed = AddOns({"lines": addons.controlnets["edges"]})
    assert not is_current(bundle, copy, CHOICES, renamed)
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert not is_current(bundle, copy, CHOICES, addons)
    damaged = copy.parent / "damaged"
    shutil.copytree(bundle, damaged)
    (damaged / "graphs" / "vae_decoder.onnx").write_bytes(b"nothing")
    assert not is_current(damaged, small("sd15").checkpoint, CHOICES, addons)
    assert not is_current(copy.parent / "none", copy, CHOICES)


def test_an_interrupted_build_leaves_the_older_bundle_and_nothing_else(
    small: Make, tmp_path: Path
) -> None:
    made = small("sd15")
    out = tmp_path / "bundles" / "small"
    shutil.copytree(made.bundle, out)
    with pytest.raises(KeyboardInterrupt):
        build(made.checkpoint, out, fail_at="unet_encoder")
    assert {p.name for p in out.parent.iterdir()} <= {"small", ".small.lock"}
    assert is_current(out, made.checkpoint, CHOICES, made.addons)


def test_a_new_bundle_takes_the_place_of_the_older(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small("sd15")
    monkeypatch.setattr(module, "graphs_of", lambda *_, **__: [])
    out = tmp_path / "small"
    out.mkdir()
    (out / "stray").touch()
    manifest = build(made.checkpoint, out)
    assert manifest.digest == read_manifest(out).digest
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    assert not (out / "stray").exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **options: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint = small("sd15").checkpoint
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no graphs"))
    monkeypatch.setattr(exporter, "capture_graph", full)
    with pytest.raises(BundleError, match=r"could not be written: No space left on device"):
        build(checkpoint, tmp_path / "out" / "small")
    assert not [p for p in (tmp_path / "out").iterdir() if p.is_dir()]


def left_by_another(parent: Path, name: str, *parts: str) -> Path:
    """A temporary folder of a build, older than an hour."""
    path = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    for part in parts:
        (path / part).mkdir()
    os.utime(path, (1, 1))
    return path


def test_what_a_killed_build_left_is_removed_by_the_next(small: Make, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "bundles" / "small", small("sd15").checkpoint
    code = (
        "import os, tessera_build.bundle as bundle; bundle._write_graphs = lambda *_: os._exit(9); "
        "from tessera_build.cli import main; main()"
    )
    line = [sys.executable, "-c", code, "bundle", str(checkpoint), "-o", str(out)]
    assert subprocess.run(line).returncode == 9
    (killed,) = [path for path in out.parent.iterdir() if path.is_dir()]
    assert (killed / "scheduler").is_dir()
    with locked(out):
        assert killed.exists(), "it is young"
    os.utime(killed, (1, 1))
    other = left_by_another(out.parent, "other", "graphs", "adapters")
    with locked(out.with_name("living")):
        living = left_by_another(out.parent, "living", "graphs")
        with locked(out):
            assert [path for path in out.parent.iterdir() if path.is_dir()] == [living]
    assert not killed.exists()
    assert not other.exists()


def test_what_no_build_left_stays(tmp_path: Path) -> None:
    """So does the older bundle, which is nowhere else when a build is killed as it takes its
    place.
    """
    older = left_by_another(tmp_path, "small", "graphs").rename(tmp_path / ".small-abcdefgh-old")
    readable = left_by_another(tmp_path, "small", "graphs")
    readable.chmod(0o755)
    kept = {older, readable, left_by_another(tmp_path, "small", "graphs", "photos")}
    kept |= {left_by_another(tmp_path, "small").rename(tmp_path / ".small-1234567")}
    (tmp_path / ".small-12345678").symlink_to(older)
    with locked(tmp_path / "small"):
        assert set(tmp_path.glob(".small-*")) == kept | {tmp_path / ".small-12345678"}
    assert {path for path in kept if not path.is_dir()} == set()


@pytest.mark.parametrize("limit", [10_000, 100_000], ids=["in a tokenizer", "in a graph"])
def test_files_that_cannot_grow_are_one_sentence(small: Make, tmp_path: Path, limit: int) -> None:
    """A real limit of the system, which libraries in C++ and Rust meet as well."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "from tessera_build.cli import main; main()"
    )
    out = tmp_path / "bundles" / "small"
    line = [sys.executable, "-c", code, "bundle", str(small("sd15").checkpoint), "-o", str(out)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(rf"^tessera-build: {out} could not be written: .*", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert not list(out.parent.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(small: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"file/small could not be written: "):
        build(small("sd15").checkpoint, tmp_path / "file" / "small")


def test_two_builds_into_one_folder(small: Make, tmp_path: Path) -> None:
    def second(what: str, done: int, total: int) -> None:
        build(small("sd15").checkpoint, tmp_path / "small")

    with pytest.raises(BundleError, match=r"another build is writing to .*small"):
        build_bundle(small("sd15").checkpoint, tmp_path / "small", choices=CHOICES, progress=second)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (Choices(scheduler="best"), r"scheduler 'best' is unknown; accepted: euler"),
        (Choices(size=100), r"\(64, 100, 256\); accepted: multiples of 8"),
        (Choices(max_size=64), r"\(64, 128, 64\); accepted: .* ascending"),
    ],
    ids=["scheduler", "odd size", "limits crossed"],
)
def test_choices_that_do_not_fit(
    small: Make, tmp_path: Path, choices: Choices, sentence: str
) -> None:
    with pytest.raises(BundleError, match=sentence):
        build(small("sd15").checkpoint, tmp_path / "out", choices=choices)
    assert not (tmp_path / "out").exists()
