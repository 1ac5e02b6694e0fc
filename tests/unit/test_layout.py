"""Budgets and traps of the repository itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("python_backend", "build/tessera_build", "client", "gateway", "bench", "tests")
FILES = sorted(p for source in SOURCES for p in (ROOT / source).rglob("*.py"))
PACKAGES = ("tessera", "tessera_build", "tessera_client", "tessera_gateway")


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


def test_the_root_of_the_runtime_holds_few_modules() -> None:
    found = [p.name for p in (ROOT / "python_backend" / "tessera").glob("*.py")]
    assert len([name for name in found if name != "__init__.py"]) <= 7


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.is_relative_to(ROOT / "tests")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_module_imports_tests(path: Path) -> None:
    """What several test modules use is in `tests/samples`, or in `tests/fakes`."""
    names = set(imported(ast.parse(path.read_text())))
    assert {n for n in names if n.startswith(("tests.unit", "tests.triton", "tests.gpu"))} == set()


def imported(tree: ast.Module) -> Iterable[str]:
    """The full names of everything that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circles(*PACKAGES) == set()


@pytest.mark.parametrize(
    ("first", "found"),
    [
        ("from made_up import second", {"made_up.first", "made_up.second"}),
        ("if TYPE_CHECKING:\n    import made_up.second", {"made_up.first", "made_up.second"}),
        ("from made_up.inner import deep", {"made_up.first", "made_up.inner.deep"}),
        ("from made_up import third", set()),
    ],
    ids=["plain", "for types only", "through a package", "none"],
)
def test_circles_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, found: set[str]
) -> None:
    package = tmp_path / "made_up"
    (package / "inner").mkdir(parents=True)
    texts = {
        "__init__": "",
        "first": f"from typing import TYPE_CHECKING\n{first}\n",
        "second": "from made_up import first, third\n",
        "third": "",
        "inner/__init__": "",
        "inner/deep": "import made_up.first\n",
    }
    for name, text in texts.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert circles("made_up") == found


def circles(*packages: str) -> set[str]:
    """The modules that import themselves through others, with what is imported for types only."""
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=False, cache_dir=None)
    below = {module: graph.find_upstream_modules(module) for module in graph.modules}
    return {
        module
        for module in graph.modules
        for direct in graph.find_modules_directly_imported_by(module)
        if module in below[direct] | {direct}
    }


@pytest.mark.parametrize("package", ["tessera", "tessera_client", "tessera.triton.render"])
def test_light_imports_stay_light(package: str) -> None:
    fakes = ROOT / "tests" / "fakes"
    code = (
        f"import sys; sys.path.insert(0, {str(fakes)!r}); import {package}; "
        "print([m for m in ('torch', 'tensorrt', 'diffusers', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_client_imports_few_packages() -> None:
    """What the extra `client` installs, and of the dependencies of those nothing by itself."""
    code = (
        "import importlib, pathlib, sys, tessera_client; "
        "folder = pathlib.Path(tessera_client.__file__).parent; "
        "names = [p.stem for p in folder.glob('*.py') if p.stem != 'grpc_transport']; "
        "[importlib.import_module(f'tessera_client.{name}') for name in names]; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(out.stdout.split())
    heavy = {"tritonclient", "grpc", "google", "gevent", "cuda", "pydantic", "torch", "ml_dtypes"}
    assert not heavy & loaded
    assert {"aiohttp", "numpy", "PIL", "rich", "typer"} <= loaded
