"""The client alone, in a fresh environment of each Python: size installed, its tests, its examples.

    python -m bench client-alone python3.10 python3.13

An environment gets the extra `client`, and nothing of the server. What each package takes is read
from its list of files, compiled byte code included. Then come the programs of `docs/user/client.md`
against a server on the demo bundle, and the client's tests, less those that need a gateway or
OpenCV. Writes `bench/results/client_alone.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.server import DEMO_BUNDLE, ROOT, Server, serving

EXTRAS = ("client-library", "client", "client,grpc")
PAGE = ROOT / "docs" / "user" / "client.md"
_PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TESTS = ("pytest==9.2.0", "pytest-timeout==2.4.0")
_LEFT_OUT = ("test_access.py", "test_figures.py")
"""They need the gateway, and OpenCV."""
_SIZES = """
import json, os, sys
from importlib.metadata import distributions
def size(path):
    return os.stat(path).st_blocks * 512 if os.path.isfile(path) else 0
print(json.dumps({d.name.lower(): [d.version, sum(size(p.locate()) for p in d.files or [])]
                  for d in distributions() if d.name not in ("pip", "setuptools")}))
"""


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description="the client alone")
    parser.add_argument("pythons", nargs="+", help="interpreters, as names or paths")
    options = parser.parse_args()
    sys.argv[1:] = [Path(python).name for python in options.pythons]  # for the report
    machine = report.describe_machine(1)
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={kept}")
        _out([*pip, str(ROOT)])
        (wheel,) = folder.glob("*.whl")
        with serving(DEMO_BUNDLE, folder / "log") as server:
            server.wait_started()
            rows = [
                row for python in options.pythons for row in tried(python, wheel, folder, server)
            ]
    settings = {"numpy": "newest", "left out": list(_LEFT_OUT)}
    print(report.write("client_alone", settings, rows, machine=machine))


def tried(python: str, wheel: Path, folder: Path, server: Server) -> list[dict[str, Any]]:
    """Sizes of each extra, installed over the one before; tests and programs with `client`."""
    rows: list[dict[str, Any]] = []
    place = folder / Path(python).name
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    own = place / "bin" / "python"
    for extra in EXTRAS:
        _out([str(own), "-m", "pip", "install", "--quiet", f"{wheel}[{extra}]"])
        packages = json.loads(_out([str(own), "-c", _SIZES]))
        rows.append({"python": _version(own), "extra": extra, "packages": packages})
        print(rows[-1]["python"], extra, f"{_megabytes(packages):.0f} MB", flush=True)
        if extra == "client":
            rows[-1]["programs"] = _programs(own, folder, server)
    rows[-1]["tests"] = _tests(own)
    print(rows[1]["programs"], "programs,", rows[-1]["tests"], "tests", flush=True)
    return rows


def table() -> str:
    """What each extra takes, by Python."""
    lines = ["| Python | extra | all | numpy | Pillow | aiohttp | Tessera | the rest |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in report.read("client_alone")["results"]:
        packages = row["packages"]
        named = [_megabytes(packages, n) for n in ("numpy", "pillow", "aiohttp", "tessera")]
        total = _megabytes(packages)
        sizes = " | ".join(f"{size:.1f}" for size in (*named, total - sum(named)))
        lines.append(f"| {row['python']} | `{row['extra']}` | {total:.0f} MB | {sizes} |")
    return "\n".join(lines)


def _programs(own: Path, folder: Path, server: Server) -> int:
    """Run those of the page; returns how many there are."""
    programs = _PROGRAM.findall(PAGE.read_text())
    for text in programs:
        _out([str(own), "-c", text.replace("http://localhost:8000", server.http)], folder)
    return len(programs)


def _tests(own: Path) -> int:
    """Run the client's; returns how many passed."""
    _out([str(own), "-m", "pip", "install", "--quiet", *_TESTS])
    tests = ROOT / "tests" / "unit" / "client"
    left_out = [f"--ignore={tests / name}" for name in _LEFT_OUT]
    options = (f"--confcutdir={tests}", "-q", "-p", "no:cacheprovider")
    said = _out([str(own), "-m", "pytest", str(tests), *options, *left_out])
    return int(re.findall(r"(\d+) passed", said)[-1])


def _megabytes(packages: dict[str, tuple[str, int]], name: str = "") -> float:
    return sum(size for key, (_, size) in packages.items() if name in ("", key)) / 1e6


def _version(own: Path) -> str:
    return _out([str(own), "-c", "import platform; print(platform.python_version())"]).strip()


def _out(command: Sequence[str], folder: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
