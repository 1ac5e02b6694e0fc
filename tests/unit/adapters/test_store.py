"""LoRA files by name, kept in memory, read ahead."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tessera.adapters.formats import read_adapter
from tessera.adapters.library import Library
from tessera.adapters.lru import ByteLru
from tessera.adapters.prefetch import PrefetchListener, _address, send_prefetch
from tessera.adapters.store import MAX_AHEAD, AdapterStore
from tessera.adapters.targets import Targets
from tessera.errors import InvalidInput, Unavailable
from tessera.plan import AdapterUse
from tests.fakes import lora
from tests.samples.waiting import comes

TARGETS = Targets({"unet": {"proj.weight": (8, 8)}}, "a small network")
FILE_BYTES = 2 * 2 * 8 * 4


def write(folder: Path, name: str, value: float = 1.0) -> Path:
    tensors = {
        "unet.proj.lora_A.weight": torch.full((2, 8), value),
        "unet.proj.lora_B.weight": torch.ones(8, 2),
    }
    return lora.save(folder / f"{name}.safetensors", tensors)


def store(folder: Path, budget: int = 10**6) -> AdapterStore:
    return AdapterStore(Library([folder]), TARGETS, parts=["unet"], budget=budget)


def test_names_are_stems_of_safetensors_files(tmp_path: Path) -> None:
    write(tmp_path / "one", "b")
    write(tmp_path / "one", "a")
    write(tmp_path / "two", "b", 2.0)
    (tmp_path / "one" / "c.bin").write_bytes(b"pickle")
    (tmp_path / "one" / "gone.safetensors").symlink_to("nowhere")
    library = Library([tmp_path / "one", tmp_path / "two", tmp_path / "missing"])
    entries = library.entries()
    assert list(entries) == ["a", "b"]
    assert entries["b"].path.parent.name == "one"
    assert len(library) == 2


def test_the_first_request_finds_the_folders_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "a")
    os.utime(tmp_path, (path.stat().st_mtime - 60,) * 2)
    library = Library([tmp_path])
    monkeypatch.delattr(os, "scandir")
    assert library.find("a", "LORAS[0].name").path == path


def test_names_of_any_letters_endings_and_folders(tmp_path: Path) -> None:
    for name in ("A:B", "café", "cafe\u0301 noir", "sub/style", "sub/deeper/style", ".hidden/x"):
        write(tmp_path, name)
    write(tmp_path, "X").rename(tmp_path / "X.SAFETENSORS")
    names = ["A:B", "X", "café", "café noir", "sub/deeper/style", "sub/style"]
    assert list(Library([tmp_path]).entries()) == sorted(names)
    kept = store(tmp_path)
    for name in (*names, "cafe\u0301", "cafe\u0301 noir"):
        assert kept.load(name).targets == {"unet": 1}
    with pytest.raises(InvalidInput, match="one of the 6 installed LoRAs; close: café noir"):
        kept.load("cafè noi")


def test_letters_beyond_ascii_whatever_the_locale_is(tmp_path: Path) -> None:
    """Triton's Python processes have ASCII, and other bytes of paths as surrogates."""
    write(tmp_path, "café")
    code = (
        "import sys; from pathlib import Path; from tessera.adapters.library import Library\n"
        "entries = Library([Path(sys.argv[1])]).entries()\n"
        "print(sys.getfilesystemencoding(), ascii(list(entries)))\n"
        "print(entries['caf\\xe9'].path.read_bytes()[8:9])"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **ascii_only},
    )
    assert ended.stdout.splitlines() == ["ascii ['caf\\xe9']", "b'{'"], ended.stderr


def test_names_that_cannot_be_used_are_listed_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b").rename(tmp_path / "a.SAFETENSORS")
    os.rename(os.fsencode(write(tmp_path, "c")), os.fsencode(tmp_path) + b"/\xff.safetensors")
    entries = Library([tmp_path]).entries()
    assert {name: entry.problem for name, entry in entries.items()} == {
        "a": "",
        "a.safetensors": "has the same name as a.SAFETENSORS; rename one of them",
        "\ufffd": "has a name that is not UTF-8; rename it",
    }
    kept = store(tmp_path)
    for name in ("a.safetensors", "\ufffd"):
        with pytest.raises(InvalidInput, match=r"this file has .* name .*; rename"):
            kept.load(name)
        assert kept.refusal(name) == entries[name].problem
    assert kept.reads == 0


def test_a_library_has_the_bundle_s_folder_and_further_ones(tmp_path: Path) -> None:
    write(tmp_path / "bundle" / "adapters", "a")
    write(tmp_path / "more", "b")
    library = Library.of_bundle(tmp_path / "bundle", [tmp_path / "more", tmp_path / "other"])
    assert list(library.entries()) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("waterclour", "accepted: one of the 30 installed LoRAs; close: watercolour"),
        ("xxxx", "accepted: style-00, style-01, .* and 10 more"),
        ("../watercolour", "accepted: one of the 30 installed LoRAs; close: watercolour"),
        ("", "accepted: style-00"),
    ],
    ids=["typing error", "far", "path", "empty"],
)
def test_an_unknown_name_is_told_the_known_ones(tmp_path: Path, name: str, accepted: str) -> None:
    for number in range(29):
        write(tmp_path, f"style-{number:02}")
    write(tmp_path, "watercolour")
    with pytest.raises(InvalidInput, match=accepted):
        Library([tmp_path]).find(name, "LORAS[0].name")


def test_a_file_is_read_once_as_long_as_it_stays_the_same(tmp_path: Path) -> None:
    write(tmp_path, "a")
    kept = store(tmp_path)
    first = kept.load("a")
    assert kept.load("a") is first
    write(tmp_path, "a", 2.0)
    os.utime(tmp_path / "a.safetensors", ns=(1, 1))  # another time, however coarse the clock is
    second = kept.load("a")
    assert second.digest != first.digest
    assert kept.reads == 2
    (tmp_path / "a.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(InvalidInput, match="is not a safetensors file"):
            kept.load("a")
    assert kept.reads == 3


def test_a_file_is_read_again_when_peft_s_configuration_changes(tmp_path: Path) -> None:
    write(tmp_path / "mine", "adapter_model")
    config = tmp_path / "mine" / "adapter_config.json"
    kept = store(tmp_path)
    digests = [kept.load("mine/adapter_model").digest]
    for alpha in (8, 16):
        config.write_text(f'{{"lora_alpha": {alpha}, "r": 2}}')
        digests += [kept.load("mine/adapter_model").digest for _ in range(2)]
    assert kept.reads == len(set(digests)) == 3


def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path, name, float(ord(name)))
    kept = store(tmp_path, budget=2 * FILE_BYTES)
    for name in "abcab":
        kept.load(name)
    assert kept.reads == 5
    kept.load("b")
    kept.load("a")
    assert kept.reads == 5
    assert kept._held.nbytes == 2 * FILE_BYTES


def test_a_request_gets_the_file_that_it_named_or_none(tmp_path: Path) -> None:
    write(tmp_path, "a")
    kept = store(tmp_path)
    digest = kept.load("a").digest
    write(tmp_path, "a", 2.0)
    assert kept.load_digest("a", digest).digest == digest  # still in memory
    other = store(tmp_path)
    with pytest.raises(Unavailable, match="the file of the LoRA 'a' has been replaced"):
        other.load_digest("a", digest)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(Unavailable, match="the LoRA 'a' is gone"):
        other.load_digest("a", digest)


def test_a_copy_under_another_name_may_be_removed(tmp_path: Path) -> None:
    path = write(tmp_path, "a")
    kept = store(tmp_path)
    first = kept.load("a")
    shutil.copy(path, tmp_path / "a-test.safetensors")
    assert kept.load("a-test").name == "a-test"
    (tmp_path / "a-test.safetensors").unlink()
    again = kept.load("a")
    assert (again.name, again.digest, kept.reads) == ("a", first.digest, 2)


def test_reading_ahead(tmp_path: Path) -> None:
    write(tmp_path, "a")
    digest = store(tmp_path).load("a").digest
    kept = store(tmp_path)
    kept.read_ahead("a", digest)
    kept.read_ahead("missing", "0")
    comes(lambda: not (kept.reading(digest) or kept.reading("0")))
    assert kept.reads == 1
    assert kept.load_digest("a", digest).digest == digest
    assert kept.reads == 1


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Files called `slow...` are read once this is set."""
    go = threading.Event()

    def read(path: Path, targets: Targets) -> Any:
        assert not path.stem.startswith("slow") or go.wait(300)
        return read_adapter(path, targets)

    monkeypatch.setattr("tessera.adapters.store.read_adapter", read)
    yield go
    go.set()


def test_who_needs_one_file_does_not_wait_for_others(
    tmp_path: Path, reading: threading.Event
) -> None:
    for name in ("slow1", "slow2", "slow3", "a"):
        write(tmp_path, name)
    kept = store(tmp_path)
    for number in (1, 2, 3):
        kept.read_ahead(f"slow{number}", str(number))
    assert kept.load("a").name == "a"
    assert all(kept.reading(str(number)) for number in (1, 2, 3))


def test_for_requests_in_queues_only_so_much_is_read_ahead(
    tmp_path: Path, reading: threading.Event
) -> None:
    kept = store(tmp_path)
    for number in range(MAX_AHEAD + 2):
        write(tmp_path, f"slow{number}", number)
        kept.read_ahead(f"slow{number}", str(number), queued=True)
    assert [kept.reading(str(n)) for n in range(MAX_AHEAD + 2)] == [True] * MAX_AHEAD + [False] * 2
    kept.read_ahead("slow8", "8")  # its request is being denoised now
    assert kept.reading("8")


def test_what_is_touched_stays_longer(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path, name, float(ord(name)))
    kept = store(tmp_path, budget=2 * FILE_BYTES)
    digests = {name: kept.load(name).digest for name in "ab"}
    kept.touch(digests["a"])
    kept.load("c")
    assert [digests[name] in kept._held for name in "ab"] == [True, False]


def test_a_file_with_odd_contents_is_refused_once(tmp_path: Path) -> None:
    path = write(tmp_path, "a")
    odd = {"unet.lora_alpha": 4, "unet.alpha_pattern": 5}
    lora.save(path, load_file(path), odd)
    kept = store(tmp_path)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"has unexpected contents: TypeError.*not iterable"):
            kept.load("a")
    assert kept.reads == 1


def test_a_file_that_torch_cannot_compute_with_is_refused(tmp_path: Path) -> None:
    shapes = {"w1_a": (2, 8), "w1_b": (2,), "w2_a": (8, 2), "w2_b": (2, 8), "t1": (2, 2, 3, 3)}
    tensors = {f"unet.proj.hada_{end}": torch.ones(shape) for end, shape in shapes.items()}
    lora.save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(InvalidInput, match="has unexpected contents: RuntimeError"):
        store(tmp_path).load("a")


def test_hints_reach_the_listener_of_their_server(tmp_path: Path) -> None:
    uses = (AdapterUse("a", "0123", 0.5),)
    got: list[object] = []
    told = threading.Event()

    def act(hint: tuple[AdapterUse, ...]) -> None:
        got.append(hint)
        told.set()

    send_prefetch(tmp_path / "board", uses)  # nobody listens
    listener = PrefetchListener(tmp_path / "board", act)
    send_prefetch(tmp_path / "other", uses)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"nonsense", _address(tmp_path / "board"))
        stranger.sendto(b"[1]", _address(tmp_path / "board"))
    send_prefetch(tmp_path / "board", uses)
    assert told.wait(300)
    listener.close()
    assert got == [uses]


def test_a_value_larger_than_the_budget_is_not_kept() -> None:
    cache: ByteLru[str, int] = ByteLru(10)
    cache.put("a", 1, 6)
    cache.put("b", 2, 11)
    assert cache.get("a") == 1
    assert cache.get("b") is None
    cache.put("a", 3, 4)
    cache.put("c", 4, 6)
    assert (cache.get("a"), cache.get("c"), cache.nbytes) == (3, 4, 10)
