"""`tessera-build verify` of whole bundles of forms that the releases do not have."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tessera.manifest import read_manifest
from tessera_build.cli import app
from tessera_build.verify import PICTURE
from tests.samples.forms import FORMS, make_form


@pytest.mark.parametrize("name", FORMS)
def test_the_graphs_and_a_whole_picture_are_well(name: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(make_form(name).bundle, bundle)
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 0, result.output
    results = dict(read_manifest(bundle).verification)
    assert results.pop(PICTURE).difference <= 2 / 255
    assert max(each.difference for each in results.values()) <= 1e-4
