"""Each extra has all that its programs import, and each image those of its programs."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from bench.gpu.environment import normal
from tests.samples.installed import needed

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "client": ("tessera_client.cli", "tessera_client.aio"),
    "client,grpc": ("tessera_client.grpc_transport",),
    "gateway": ("tessera_gateway.cli", "tessera_gateway.app"),
    "fleet": ("tessera_gateway.fleet.cli", "tessera_gateway.fleet.picker"),
    "ray": ("tessera_gateway.fleet.ray_serve", "tessera_gateway.fleet.kuberay"),
    "serve": ("tessera.serve.cli", "tessera.serve.supervisor"),
    "build": ("tessera_build.cli", "tessera_build.bundle"),
}
"""Modules of programs that have to be there with an extra alone."""
IMPORT = """
import importlib, sys
from importlib.machinery import PathFinder

finders = list(sys.meta_path)

class Without:
    find_distributions = staticmethod(PathFinder.find_distributions)

    def find_spec(self, name, path=None, target=None):
        if path is None and name in {hidden!r}:  # there may be a copy inside another package
            others = [each for each in sys.path if not each.endswith("site-packages")]
            return PathFinder.find_spec(name, others, target)
        found = (finder.find_spec(name, path, target) for finder in finders)
        return next((spec for spec in found if spec), None)

sys.meta_path[:] = [Without()]
for name in {modules!r}:
    importlib.import_module(name)
"""


def hidden_by(extras: str) -> set[str]:
    """Installed modules of packages that an extra does not bring."""
    there = needed(f"tessera[{extras}]").keys()
    return {
        module
        for module, packages in packages_distributions().items()
        if not any(normal(package) in there for package in packages)
    }


def imported(extras: str, modules: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    code = IMPORT.format(hidden=hidden_by(extras), modules=modules)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("extras", PROGRAMS)
def test_an_extra_has_all_that_its_programs_import(extras: str) -> None:
    done = imported(extras, PROGRAMS[extras])
    assert done.returncode == 0, done.stderr


def test_a_package_that_an_extra_lacks_is_noticed() -> None:
    done = imported("gateway", PROGRAMS["fleet"])
    assert "No module named 'prometheus_client'" in done.stderr


def test_the_image_has_what_its_programs_import() -> None:
    """All that deploy/ starts from it."""
    extras, ray = re.findall(r'"\.\[([\w,]+)\]"', (ROOT / "Dockerfile").read_text())
    named = ("client", "gateway", "fleet", "serve", "build")
    done = imported(extras, sum((PROGRAMS[each] for each in named), ()))
    assert done.returncode == 0, done.stderr
    done = imported(f"{extras},{ray}", PROGRAMS["ray"])
    assert done.returncode == 0, done.stderr
