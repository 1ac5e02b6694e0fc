"""An environment for the measurements, made without a network: what a carried folder brings comes
first, what this Python has is linked beside it, and nothing else can be imported.

Triton's Python stub heeds no PYTHONPATH, hence an environment of its own. A package is linked with
all that it requires; so the environment is the same on every machine that has them. Standard
library only.
"""

from __future__ import annotations

import re
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROOTS = (
    "accelerate",
    "filelock",
    "grpcio",
    "huggingface-hub",
    "hypothesis",
    "ml-dtypes",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "peft",
    "pillow",
    "psutil",
    "pytest",
    "pytest-timeout",
    "regex",
    "requests",
    "rich",
    "safetensors",
    "setuptools",
    "tokenizers",
    "torch",
    "transformers",
    "typer",
    "urllib3",
)
"""What the measurements import of the machine's own packages."""
SOURCES = ("python_backend", "build", "client", ".")


class Missing(Exception):
    """A package is neither carried nor installed."""


def make(folder: Path, names: Iterable[str], carry: Path | None) -> Path:
    """Make the environment; returns its interpreter.

    Args:
        folder: where to.
        names: of the carried packages; those that `carry` lacks are linked.
        carry: folder of wheels and archives that `pack.py` made.

    Raises:
        Missing: see there.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    if carry:
        unpack(carry, site)
    have = {normal(p.name.split("-")[0]) for p in site.glob("*.dist-info")}
    installed = {normal(d.metadata["Name"]): d for d in reversed(list(distributions()))}
    wanted = [name for name in map(normal, names) if name not in have]
    lacking = [name for name in (*wanted, *ROOTS) if name not in have | installed.keys()]
    if lacking:
        raise Missing(f"not carried and not installed: {', '.join(sorted(set(lacking)))}")
    for name in closure((*wanted, *ROOTS), installed, without=have):
        link(installed[name], site)
    lines = [str((ROOT / source).resolve()) for source in SOURCES]
    (site / "tessera.pth").write_text("\n".join(lines) + "\n")
    return folder / "bin" / "python"


def unpack(carry: Path, site: Path) -> None:
    """Put wheels and archives into a folder of packages."""
    for wheel in sorted(carry.glob("*.whl")):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(site)
    for archive in sorted(carry.glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            tar.extractall(site, filter="data")


def pinned(file: Path) -> dict[str, str]:
    """Versions by name from a list of `name==version` lines; `#` begins a comment."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    pairs = (line.partition("==")[::2] for line in lines if line)
    return {normal(name): version for name, version in pairs}


def closure(
    names: Iterable[str], installed: Mapping[str, Distribution], *, without: Iterable[str] = ()
) -> list[str]:
    """Names and all that they require, as far as it is installed."""
    seen, waiting = set(without), list(names)
    found = []
    while waiting:
        name = waiting.pop()
        if name in seen or name not in installed:
            continue
        seen.add(name)
        found.append(name)
        waiting += [normal(_name(r)) for r in installed[name].requires or () if "extra ==" not in r]
    return sorted(found)


def link(distribution: Distribution, site: Path) -> None:
    """Link the top-level files and folders of a package."""
    tops = {file.parts[0] for file in distribution.files or ()}
    for top in sorted(tops - {"..", "__pycache__"}):
        if not top.endswith(".pth"):
            _link(Path(str(distribution.locate_file(top))), site / top)


def normal(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _link(source: Path, target: Path) -> None:
    """Link a file or folder; a folder that exists already gets what it lacks."""
    if not target.exists():
        target.symlink_to(source)
    elif source.is_dir() and not target.is_symlink():
        for child in source.iterdir():
            _link(child, target / child.name)


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    return found[0] if found else ""
