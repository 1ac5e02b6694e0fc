"""What is carried to a GPU: sizes, what is cut, and that nothing is missing there."""

from __future__ import annotations

import ast
import lzma
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.gpu import first, pack, second
from bench.gpu.environment import HERE, ROOT, ROOTS, Missing, closure, make, normal, pinned, unpack

MIB = 2**20
LOCAL = ("bench", "tests", "tessera", "tessera_build", "tessera_client")
ELSEWHERE = {"triton_python_backend_utils", "tensorrt", "polygraphy"}
"""Triton brings the first; the others are not used there."""
FIRST = (
    "tests.conftest",
    "tests.gpu.conftest",
    "tests.gpu.test_engines",
    "tests.gpu.test_templates",
)
SECOND = (
    "tessera.serve.__main__",
    *(f"tessera.triton.{n}" for n in ("denoise", "encode", "decode")),
)


def test_sizes_and_commands() -> None:
    folders = {Path("out/carry-1"): 9 * MIB, Path("out/carry-2"): 28 * MIB}
    text, fits = pack.summary(30 * MIB, folders)
    assert fits
    assert text.splitlines() == [
        "checkout: 30.0 MiB",
        "out/carry-1: 9.0 MiB; with the checkout 39.0 MiB",
        "out/carry-2: 28.0 MiB; with the checkout 58.0 MiB",
        "Carry each folder with the checkout, and run there:",
        "    bench/gpu/first.sh out/carry-1",
        "    bench/gpu/second.sh out/carry-2",
    ]


def test_a_folder_that_is_too_large_is_told() -> None:
    text, fits = pack.summary(30 * MIB, {Path("a"): 30 * MIB, Path("b"): 30 * MIB + 1})
    assert not fits
    assert "a: 30.0 MiB; with the checkout 60.0 MiB\n" in text
    assert "b: 30.0 MiB; with the checkout 60.0 MiB - too large, the limit is 60.0 MiB" in text


def test_the_checkout_leaves_room() -> None:
    assert 20 * MIB < pack.checkout_size() < 32 * MIB


@pytest.mark.parametrize("name", ["first", "second"])
def test_lists_are_pinned(name: str) -> None:
    found = pinned(HERE / f"{name}-wheels.txt")
    assert found
    assert all(re.fullmatch(r"[0-9][\w.]*", version) for version in found.values())


def test_both_lists_agree_with_each_other_and_with_the_project() -> None:
    lists = [pinned(HERE / f"{name}-wheels.txt") for name in ("first", "second")]
    assert all(lists[1][name] == version for name, version in lists[0].items())
    project = (ROOT / "pyproject.toml").read_text()
    for name in ("diffusers", "nvidia-pytriton", "numpy"):
        assert f'"{name}=={lists[1][name]}"' in project


def test_what_is_linked_is_there() -> None:
    assert set(ROOTS) <= pinned(HERE / "machine.txt").keys()


@pytest.mark.parametrize(
    ("script", "more"), [(first, FIRST), (second, SECOND)], ids=["first", "second"]
)
def test_every_import_is_there_or_carried(script: object, more: tuple[str, ...]) -> None:
    name = script.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    steps = [step.command[2] for step in script.STEPS]  # type: ignore[attr-defined]
    have = pinned(HERE / "machine.txt").keys() | pinned(HERE / f"{name}-wheels.txt").keys()
    known = packages_distributions()
    for module in third_party(*steps, *more) - ELSEWHERE:
        assert {normal(d) for d in known.get(module, [module])} & have, module


def third_party(*modules: str) -> set[str]:
    """Top-level names that modules, and ours that they import, import at once."""
    seen, waiting, found = set[str](), list(modules), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for other in imports(name):
            top = other.partition(".")[0]
            if top in LOCAL:
                waiting.append(other)
            elif top not in sys.stdlib_module_names:
                found.add(top)
    return found


@cache
def imports(name: str) -> tuple[str, ...]:
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        return ()
    if spec is None or not spec.origin:
        return ()
    return tuple(_imported(ast.parse(Path(spec.origin).read_text())))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module.partition(".")[0] in LOCAL:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("pytriton/tritonserver/bin/tritonserver", True),
        ("pytriton/tritonserver/backends/python/libtriton_python.so", True),
        ("pytriton/tritonserver/python_backend_stubs/3.12/triton_python_backend_stub", True),
        ("pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub", False),
        ("pytriton/tritonserver/caches/local/libtritoncache_local.so", False),
        ("pytriton/proxy/communication.py", False),
        ("nvidia_pytriton.libs/libtritonserver-717102f0.so", True),
        ("nvidia_pytriton.libs/libpython3-419a3a08.13.so.1.0", False),
        ("numpy/core/_multiarray_umath.so", True),
        ("numpy/core/tests/test_umath.py", False),
        ("numpy/f2py/crackfortran.py", False),
    ],
)
def test_what_is_cut(name: str, kept: bool) -> None:
    assert pack.is_kept(name) is kept


def elf(*sections: tuple[str, bytes]) -> bytes:
    """A 64-bit ELF file of some sections, as far as `blanked` reads it."""
    names = b"\0" + b"".join(f"{name}\0".encode() for name, _ in (*sections, (".shstrtab", b"")))
    body, headers = bytearray(64), []
    for name, content in (*sections, (".shstrtab", names)):
        place = names.index(f"{name}\0".encode())
        headers.append(struct.pack("<IIQQQQ24x", place, 1, 0, 0, len(body), len(content)))
        body += content
    body[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", body, 0x28, len(body))
    struct.pack_into("<HHH", body, 0x3A, 64, len(headers), len(headers) - 1)
    return bytes(body + b"".join(headers))


def test_sections_that_nobody_reads_are_blanked() -> None:
    file = elf((".text", b"code"), (".rodata", b"data"), (".symtab", b"symbols"))
    assert pack.blanked("libx.so", file) == file.replace(b"symbols", bytes(7))
    unicode = pack.blanked("libicudata-1.so", file)
    assert unicode == file.replace(b"symbols", bytes(7)).replace(b"data", bytes(4), 1)
    assert pack.blanked("a.py", b"symbols") == b"symbols"


def test_a_cut_archive_is_unpacked(tmp_path: Path) -> None:
    wheel = tmp_path / "nvidia_pytriton-0.7.0-py3-none-any.whl"
    server = elf((".symtab", b"symbols"))
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("pytriton/__init__.py", "import nothing")
        file.writestr("pytriton/tritonserver/bin/tritonserver", server)
        file.writestr("nvidia_pytriton.libs/libpython3.13.so", server)
        file.writestr("nvidia_pytriton-0.7.0.dist-info/METADATA", "Name: nvidia-pytriton\n")
    members = dict(pack.cut([wheel]))
    carry = tmp_path / "carry"
    carry.mkdir()
    pack.write_archive(members, carry / "second.tar.xz")
    before = (carry / "second.tar.xz").read_bytes()
    pack.write_archive(members, carry / "second.tar.xz")
    assert (carry / "second.tar.xz").read_bytes() == before
    assert lzma.is_check_supported(lzma.CHECK_CRC64)
    site = tmp_path / "site"
    unpack(carry, site)
    executable = site / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    assert executable.stat().st_mode & 0o111
    assert executable.read_bytes() == elf((".symtab", bytes(7)))
    assert (site / "pytriton" / "__init__.py").read_text() == ""
    assert not (site / "nvidia_pytriton.libs").exists()


def test_what_is_neither_carried_nor_installed_is_told(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="not carried and not installed: no-such-package"):
        make(tmp_path / "env", ["no-such-package"], None)


def test_requirements_are_linked_too() -> None:
    class Installed:
        def __init__(self, *requires: str) -> None:
            self.requires = requires

    found = {"a": Installed("b>=1", "c; extra == 'x'"), "b": Installed("d"), "c": Installed()}
    installed = {**found, "d": Installed("a")}
    assert closure(["a"], installed) == ["a", "b", "d"]  # type: ignore[arg-type]
    assert closure(["a"], installed, without=["b"]) == ["a"]  # type: ignore[arg-type]
