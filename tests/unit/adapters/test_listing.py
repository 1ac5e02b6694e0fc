"""Files below a folder, listed again where a directory has changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tessera.adapters.listing import Listing

SUFFIXES = (".safetensors",)


def settle(*folders: Path) -> None:
    """Make their last change a while ago."""
    for folder in folders:
        os.utime(folder, (time.time() - 60, time.time() - 60))


def names(listing: Listing, folder: Path) -> list[str]:
    return [Path(path).relative_to(folder).as_posix() for path in listing.paths()]


@pytest.mark.parametrize("settled", [True, False])
def test_files_come_and_go(tmp_path: Path, settled: bool) -> None:
    """At once, also while the directories have only just changed."""
    folder = tmp_path / "deep"
    (folder / "b").mkdir(parents=True)
    listing, wanted = Listing(folder, SUFFIXES), list[str]()
    for name in ("c.safetensors", "b/d.SAFETENSORS", "a.safetensors", "b/e.safetensors"):
        if settled:
            settle(folder, folder / "b")
        assert names(listing, folder) == sorted(wanted)
        (folder / name).touch()
        wanted.append(name)
        assert names(listing, folder) == sorted(wanted)
    (folder / "b" / "e.safetensors").unlink()
    assert "b/e.safetensors" not in names(listing, folder)


def test_what_has_not_changed_is_not_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.safetensors").touch()
    settle(tmp_path, tmp_path / "a", tmp_path / "b")
    listed: list[str] = []
    scandir = os.scandir

    def watched(where: str) -> object:
        listed.append(Path(where).name)
        return scandir(where)

    monkeypatch.setattr(os, "scandir", watched)
    listing = Listing(tmp_path, SUFFIXES)
    first = listing.paths()
    assert sorted(listed) == sorted([tmp_path.name, "a", "b"])
    listed.clear()
    assert listing.paths() is first
    assert listed == []
    (tmp_path / "b" / "y.safetensors").touch()
    assert len(listing.paths()) == 3
    assert listed == ["b"]


def test_a_file_in_place_of_another_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").touch()
    settle(tmp_path)
    listing = Listing(tmp_path, SUFFIXES)
    first = listing.paths()
    (tmp_path / "new").touch()
    (tmp_path / "new").rename(tmp_path / "x.safetensors")
    assert listing.paths() == first
    assert listing.paths() is not first


def test_folders_that_cannot_be_read_are_empty(tmp_path: Path) -> None:
    (tmp_path / "gone.safetensors").symlink_to("nowhere")
    (tmp_path / "around").symlink_to(tmp_path)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.safetensors").touch()
    assert Listing(tmp_path, SUFFIXES).paths() == ()
    assert Listing(tmp_path / "missing", SUFFIXES).paths() == ()
    assert Listing(tmp_path / "gone.safetensors", SUFFIXES).paths() == ()


def test_folders_in_folders_have_an_end(tmp_path: Path) -> None:
    deep = tmp_path
    for name in "abcde":
        deep = deep / name
        deep.mkdir()
        (deep / "x.safetensors").touch()
    assert len(Listing(tmp_path, SUFFIXES).paths()) == 4
