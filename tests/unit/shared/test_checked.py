"""Files that have been compared once are not compared again, unless they have been written."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tessera.errors import BundleError
from tessera.manifest import FileEntry, Manifest, check_file, file_digest
from tessera.shared import checked as module
from tessera.shared.checked import CheckedFiles
from tests.samples.requests import MANIFEST

NAMES = ("a", "b", "c")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode() * 10)
    files = {name: FileEntry(10, file_digest(tmp_path / name)) for name in NAMES}
    return dataclasses.replace(MANIFEST, files=files)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read to the end."""
    names: list[str] = []

    def counted(folder: Path, name: str, entry: FileEntry) -> None:
        names.append(name)
        check_file(folder, name, entry)

    monkeypatch.setattr(module, "check_file", counted)
    return names


def test_a_process_compares_a_file_once(
    tmp_path: Path, manifest: Manifest, compared: list[str]
) -> None:
    files = CheckedFiles(tmp_path, manifest)
    assert [files.check("a"), files.check("a")] == 2 * [tmp_path / "a"]
    assert compared == ["a"]
    with pytest.raises(BundleError, match="has no file 'd'"):
        files.check("d")


def test_what_the_launcher_has_compared_no_process_reads_again(
    tmp_path: Path, manifest: Manifest, compared: list[str]
) -> None:
    first, told = CheckedFiles(tmp_path, manifest), list[str]()
    first.check_all(told.append)
    assert sorted(compared) == sorted(told) == list(NAMES)
    first.write(tmp_path / "record")
    later = CheckedFiles(tmp_path, manifest, tmp_path / "record")
    for name in NAMES:
        later.check(name)
    assert len(compared) == 3


@pytest.mark.parametrize("how", ["written", "replaced", "written, with its old times"])
def test_a_file_that_has_changed_since_is_found(
    tmp_path: Path, manifest: Manifest, how: str
) -> None:
    first = CheckedFiles(tmp_path, manifest)
    first.check_all()
    first.write(tmp_path / "record")
    path = tmp_path / "b"
    before = path.stat()
    if how == "replaced":
        (tmp_path / "new").write_bytes(b"x" * 10)
        (tmp_path / "new").rename(path)
    else:
        while path.stat().st_ctime_ns == before.st_ctime_ns:  # a file system's clock has ticks
            path.write_bytes(b"x" * 10)
    if "times" in how:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for files in (first, CheckedFiles(tmp_path, manifest, tmp_path / "record")):
        files.check("a")
        with pytest.raises(BundleError, match="SHA-256 differs"):
            files.check("b")


@pytest.mark.parametrize("content", ["", "[]", '{"bundle": "other", "files": {}}', '{"files": 1}'])
def test_a_record_of_anything_else_says_nothing(
    tmp_path: Path, manifest: Manifest, compared: list[str], content: str
) -> None:
    (tmp_path / "record").write_text(content)
    CheckedFiles(tmp_path, manifest, tmp_path / "record").check("a")
    assert compared == ["a"]
    CheckedFiles(tmp_path, manifest, tmp_path / "no record").check("a")
    assert compared == ["a", "a"]


def test_the_first_wrong_file_ends_the_comparison(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "a").unlink()
    with pytest.raises(BundleError, match=r"a cannot be read \(No such file"):
        CheckedFiles(tmp_path, manifest).check_all()
