"""Makes the two folders that are carried to a GPU without a network.

The first holds wheels. The second holds one archive: Triton cut from the nvidia-pytriton wheel to
what the server needs, numpy 1.26 and the client. Started by `pack.sh`. Standard library only.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import lzma
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.gpu.environment import HERE, ROOT, pinned

LIMIT = 60 * 2**20
"""Bytes of a checkout and one folder; a borrowed machine takes 64 MiB at a time."""
PYTHON = "3.12"
_GLIBC = (39, 38, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
_OLD_NAMES = ("manylinux2014", "manylinux2010", "manylinux1")
DROPPED = (
    "*.data/*",
    "*/tests/*",
    "numpy/core/include/*",
    "numpy/core/lib/*",
    "numpy/distutils/*",
    "numpy/f2py/*",
    "numpy/random/lib/*",
    "nvidia_pytriton.libs/libpython*",
    "pytriton/*",
)
KEPT = (
    "pytriton/tritonserver/backends/*",
    "pytriton/tritonserver/bin/*",
    "pytriton/tritonserver/python_backend_stubs/{python}/*",
)
"""Kept although `DROPPED` says otherwise."""
_BLANK = {"*": (".symtab", ".strtab"), "libicudata-*": (".rodata",)}
"""Sections of libraries that nothing reads here: names for debuggers, and 29 MB of Unicode tables
that only a parser of XML in foreign encodings would open. They are overwritten with zeros."""
_NOBITS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Make both folders, print sizes and commands; 1 if one is too large."""
    parser = argparse.ArgumentParser(prog="bench/gpu/pack.sh")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("out"), help="where to")
    parser.add_argument(
        "--libpython", type=Path, help="libpython3.12.so.1.0, for a machine that lacks it"
    )
    options = parser.parse_args(arguments)
    first, second = (options.folder / f"carry-{number}" for number in (1, 2))
    with tempfile.TemporaryDirectory() as folder:
        download(HERE / "first-wheels.txt", _emptied(first))
        wheels = Path(folder) / "wheels"
        wheels.mkdir()
        download(HERE / "second-wheels.txt", wheels)
        members = dict(cut(sorted(wheels.glob("*.whl"))))
        if options.libpython:
            name = f"nvidia_pytriton.libs/{options.libpython.name}"
            members[name] = blanked(options.libpython.name, options.libpython.read_bytes())
        write_archive(members, _emptied(second) / "second.tar.xz")
    sizes = {path: size_of(path) for path in (first, second)}
    text, fits = summary(checkout_size(), sizes)
    print(text)
    return 0 if fits else 1


def download(names: Path, folder: Path) -> None:
    """Fetch the wheels of a list for that machine's Python."""
    platforms = [f"manylinux_2_{n}_x86_64" for n in _GLIBC] + [f"{n}_x86_64" for n in _OLD_NAMES]
    line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    line += ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"]
    line += [f"--platform={platform}" for platform in platforms]
    subprocess.run([*line, "--dest", str(folder), "--requirement", str(names)], check=True)
    expected, got = len(pinned(names)), len(list(folder.glob("*.whl")))
    if got != expected:
        raise SystemExit(f"{names.name} lists {expected} wheels, {got} were fetched")


def cut(wheels: Sequence[Path], python: str = PYTHON) -> Iterator[tuple[str, bytes]]:
    """What is carried of some wheels: names in a folder of packages, and contents."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as file:
            for name in file.namelist():
                if not name.endswith("/") and is_kept(name, python):
                    yield name, blanked(name.rpartition("/")[2], file.read(name))
    yield "pytriton/__init__.py", b""


def is_kept(name: str, python: str = PYTHON) -> bool:
    """Whether a file of a wheel is carried."""
    kept = any(fnmatch.fnmatch(name, pattern.format(python=python)) for pattern in KEPT)
    return kept or not any(fnmatch.fnmatch(name, pattern) for pattern in DROPPED)


def blanked(name: str, content: bytes) -> bytes:
    """A file whose sections of `_BLANK` are zero, if it is a 64-bit ELF file."""
    if content[:5] != b"\x7fELF\x02":
        return content
    wanted = {s for pattern, own in _BLANK.items() if fnmatch.fnmatch(name, pattern) for s in own}
    changed = bytearray(content)
    for section, offset, size in _sections(content):
        if section in wanted:
            changed[offset : offset + size] = bytes(size)
    return bytes(changed)


def write_archive(members: dict[str, bytes], path: Path) -> None:
    """A tar file under xz; executables keep their bit, nothing depends on the time."""
    filters = [
        {"id": lzma.FILTER_X86},
        {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**26},
    ]
    with (
        lzma.open(path, "wb", filters=filters) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name in sorted(members, key=lambda n: (Path(n).suffix, n)):
            entry = tarfile.TarInfo(name)
            entry.size = len(members[name])
            entry.mode = 0o755 if members[name][:4] == b"\x7fELF" else 0o644
            tar.addfile(entry, io.BytesIO(members[name]))


def checkout_size() -> int:
    """Bytes of the files that travel with a checkout: tracked, or new and not ignored."""
    line = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = (ROOT / name for name in set(names.split("\0")) if name)
    return sum(path.lstat().st_size for path in paths if path.exists())


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def summary(checkout: int, sizes: dict[Path, int], limit: int = LIMIT) -> tuple[str, bool]:
    """What is printed, and whether everything is small enough.

    Args:
        checkout: its bytes.
        sizes: bytes of each folder.
        limit: bytes of a checkout and one folder.
    """
    lines = [f"checkout: {_mib(checkout)}"]
    fits = True
    for path, size in sizes.items():
        total = checkout + size
        fits &= total <= limit
        said = "" if total <= limit else f" - too large, the limit is {_mib(limit)}"
        lines.append(f"{path}: {_mib(size)}; with the checkout {_mib(total)}{said}")
    lines.append("Carry each folder with the checkout, and run there:")
    for path, script in zip(sizes, ("first", "second"), strict=False):
        lines.append(f"    bench/gpu/{script}.sh {path}")
    return "\n".join(lines), fits


def _sections(content: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the sections of a 64-bit ELF file that take room in it."""
    (start,) = struct.unpack_from("<Q", content, 0x28)
    size, count, names = struct.unpack_from("<HHH", content, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", content, start + i * size) for i in range(count)]
    for name, kind, _, _, offset, length in headers:
        if kind != _NOBITS:
            begin = headers[names][4] + name
            yield content[begin : content.index(0, begin)].decode(), offset, length


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
