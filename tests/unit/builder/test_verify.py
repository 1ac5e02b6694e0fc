"""`tessera-build verify`: a bundle's graphs against torch."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tessera.errors import BundleError
from tessera.manifest import (
    FileEntry,
    file_digest,
    read_manifest,
    write_manifest,
)
from tessera.variants import VARIANTS
from tessera_build.cli import app
from tessera_build.verify import tolerance_of, verify_bundle
from tests.samples.graphs import Make


@pytest.mark.parametrize("variant", VARIANTS)
def test_verify_finds_all_well_and_writes_it_down(
    small: Make, variant: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small(variant).bundle, bundle)
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 0, result.output
    manifest = read_manifest(bundle)
    assert set(manifest.verification) == set(manifest.graphs)
    for graph, found in manifest.verification.items():
        assert 0 <= found.difference <= 1e-4, graph
        assert found.cases == 2
        if graph != "unet_text":  # matrix products alone: some machines give the same bits
            assert found.difference > 0, f"{graph}: not compared with itself"


def test_verify_takes_other_engines_as_well(small: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, bundle)
    verify_bundle(bundle, kinds=("onnxruntime", "torch"))
    manifest = read_manifest(bundle)
    assert set(manifest.verification) == {
        f"{g}{k}" for g in manifest.graphs for k in ("", "@torch")
    }
    assert manifest.verification["unet_decoder@torch"].difference <= 1e-5
    assert (tolerance_of("unet_decoder"), tolerance_of("unet_decoder@torch")) == (1e-4, 2e-2)


def test_verify_finds_a_graph_that_computes_something_else(small: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, bundle)
    path = bundle / "networks" / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"act_fn": "relu"}))
    manifest = read_manifest(bundle)
    entry = FileEntry(path.stat().st_size, file_digest(path))
    files = manifest.files | {"networks/vae/config.json": entry}
    write_manifest(bundle, dataclasses.replace(manifest, files=files))
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 1
    assert "differs" in result.output


def test_verify_refuses_a_bundle_edited_by_hand(small: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, bundle)
    (bundle / "scheduler" / "scheduler_config.json").write_text("{}")
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert isinstance(result.exception, BundleError)
    assert "scheduler_config.json has 2 bytes" in str(result.exception)
