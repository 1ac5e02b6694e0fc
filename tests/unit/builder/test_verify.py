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
from tessera_build.pictures import difference
from tessera_build.precision import PRECISIONS
from tessera_build.verify import PICTURE, tolerance_of, verify_bundle
from tests.samples.bundles import IN_HALF, INPAINTING
from tests.samples.graphs import Make


@pytest.mark.parametrize("variant", [*VARIANTS, *IN_HALF])
def test_verify_finds_all_well_and_writes_it_down(
    small: Make, variant: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small(variant).bundle, bundle)
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 0, result.output
    manifest = read_manifest(bundle)
    results = dict(manifest.verification)
    picture = results.pop(PICTURE)
    assert picture.difference <= 2 / 255
    assert set(results) == set(manifest.graphs)
    for graph, found in results.items():
        assert 0 <= found.difference <= 1e-4, graph
        assert found.cases == 2
        if graph != "unet_text":  # matrix products alone: some machines give the same bits
            assert found.difference > 0, f"{graph}: not compared with itself"


def test_a_picture_of_an_inpainting_network(small: Make) -> None:
    """Diffusers' pipeline for it is another one, and it has nothing but grey to go by."""
    assert difference(small(INPAINTING).bundle, "euler") <= 2 / 255


def test_verify_takes_other_engines_as_well(small: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, bundle)
    verify_bundle(bundle, kinds=("onnxruntime", "torch"))
    manifest = read_manifest(bundle)
    assert set(manifest.verification) == {
        f"{g}{k}" for g in manifest.graphs for k in ("", "@torch")
    } | {PICTURE}
    assert manifest.verification["unet_decoder@torch"].difference <= 1e-5
    kinds = ("unet_decoder", "unet_decoder@torch")
    accepted = {p: [tolerance_of(name, p) for name in kinds] for p in PRECISIONS}
    assert accepted["fp32"] == accepted["fp16"] == [1e-4, 40 / 2**11]
    assert accepted["bf16"] == [1e-4, 40 / 2**8]


def test_verify_finds_what_only_a_picture_shows(small: Make, tmp_path: Path) -> None:
    """Means and deviations of latents that the manifest leaves out: all graphs are the same."""
    bundle = tmp_path / "bundle"
    shutil.copytree(small("sdxl").bundle, bundle)
    change(bundle, "networks/vae", latents_mean=[0.5, -1, 2, 0.1], latents_std=[2.0, 3, 1, 5])
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 1
    found = read_manifest(bundle).verification
    assert found.pop(PICTURE).difference > 0.1
    assert all(each.difference <= 1e-4 for each in found.values())


def change(bundle: Path, part: str, **fields: object) -> None:
    """Change a network's configuration, and what the manifest says of the file."""
    path = bundle / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    manifest = read_manifest(bundle)
    entry = FileEntry(path.stat().st_size, file_digest(path))
    files = manifest.files | {f"{part}/config.json": entry}
    write_manifest(bundle, dataclasses.replace(manifest, files=files))


def test_verify_finds_a_graph_that_computes_something_else(small: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, bundle)
    change(bundle, "networks/vae", act_fn="relu")
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
