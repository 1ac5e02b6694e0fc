"""Budgets and traps of the repository itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("python_backend", "build/tessera_build", "client", "bench")
FILES = sorted(p for source in SOURCES for p in (ROOT / source).rglob("*.py"))


def test_git_does_not_ignore_the_build_folder() -> None:
    git = ["git", "check-ignore", "build/", "build/tessera_build", "build/demo_model/base/unet"]
    found = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    if found.returncode == 128:
        pytest.skip("not a git checkout")
    assert found.stdout == ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("package", ["tessera", "tessera_client", "tessera.triton.render"])
def test_light_imports_stay_light(package: str) -> None:
    fakes = ROOT / "tests" / "fakes"
    code = (
        f"import sys; sys.path.insert(0, {str(fakes)!r}); import {package}; "
        "print([m for m in ('torch', 'tensorrt', 'diffusers', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
