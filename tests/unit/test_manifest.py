"""`bundle.json`: whole or not at all, and never the wrong one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tessera import manifest as module
from tessera.errors import BundleError
from tessera.manifest import (
    FileEntry,
    Graph,
    Manifest,
    check_files,
    file_digest,
    read_manifest,
    write_manifest,
)
from tests.samples.requests import MANIFEST


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "a.onnx").write_bytes(b"graph")
    write_manifest(tmp_path, whole(tmp_path))
    return tmp_path


def whole(folder: Path) -> Manifest:
    name = "graphs/a.onnx"
    return dataclasses.replace(
        MANIFEST,
        graphs={"a": Graph(name, "networks/a/config.json", {"w": {"perm": [1, 0]}})},
        files={name: FileEntry(5, file_digest(folder / name))},
    )


def test_reads_what_was_written(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest == whole(bundle)
    check_files(bundle, manifest)


def test_the_last_schema_is_read_and_becomes_the_present_one(bundle: Path) -> None:
    """Its bundles are in float32, and a graph shares the weights of at most one other."""
    expected = whole(bundle)
    file = bundle / "bundle.json"
    content = json.loads(file.read_text())
    del content["precision"]
    content["graphs"]["b"] = content["graphs"]["a"] | {"shares": "a"}
    content["graphs"]["a"]["shares"] = ""
    file.write_text(json.dumps(content | {"schema": 3}))
    manifest = read_manifest(bundle)
    assert manifest.precision == "fp32"
    assert manifest.graphs["a"] == expected.graphs["a"]
    assert manifest.graphs["b"].shares == ("a",)
    assert manifest.files_of("b") == 2 * ["graphs/a.onnx"]
    write_manifest(bundle, manifest)
    assert json.loads(file.read_text())["schema"] == module.SCHEMA
    assert read_manifest(bundle).graphs == manifest.graphs


def test_the_digest_follows_the_files(bundle: Path) -> None:
    before = read_manifest(bundle)
    other = dataclasses.replace(before, files={"graphs/a.onnx": FileEntry(5, "0" * 64)})
    assert before.digest != other.digest


def test_an_interrupted_write_leaves_the_old_manifest(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_manifest(bundle, dataclasses.replace(MANIFEST, name="new"))
    assert read_manifest(bundle).name == "test"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read"),
        ("[]", "has schema None"),
        ('{"schema": 99}', "has schema 99, this Tessera reads 3 and 4; build the bundle again"),
        ('{"schema": 3}', "is damaged"),
        ('{"schema": 4, "defaults": {"stepz": 1}}', "is damaged"),
    ],
    ids=["not JSON", "a list", "another schema", "fields missing", "fields unknown"],
)
def test_a_manifest_that_does_not_fit_is_refused(bundle: Path, content: str, sentence: str) -> None:
    (bundle / "bundle.json").write_text(content)
    with pytest.raises(BundleError, match=sentence):
        read_manifest(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no bundle\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"grapX", "SHA-256 differs"), (b"gra", "has 3 bytes, the manifest says 5")],
    ids=["changed", "cut"],
)
def test_a_changed_file_is_found(bundle: Path, content: bytes, sentence: str) -> None:
    (bundle / "graphs" / "a.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=sentence):
        check_files(bundle, read_manifest(bundle))


def test_a_missing_file_is_found(bundle: Path) -> None:
    (bundle / "graphs" / "a.onnx").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        check_files(bundle, read_manifest(bundle))


def test_the_file_is_plain_json(bundle: Path) -> None:
    assert json.loads((bundle / "bundle.json").read_text())["schema"] == module.SCHEMA
