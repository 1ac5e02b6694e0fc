"""LoRA files by name, kept in memory, read ahead."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
import torch

from tessera.adapters.hints import HintListener, _address, send_hint
from tessera.adapters.library import Library
from tessera.adapters.lru import ByteLru
from tessera.adapters.settings import AdapterSettings
from tessera.adapters.store import Store
from tessera.adapters.targets import Targets
from tessera.errors import InvalidInput, Unavailable
from tessera.plan import AdapterUse
from tests.fakes import lora

TARGETS = Targets({"unet": {"proj.weight": (8, 8)}}, "a small network")
FILE_BYTES = 2 * 2 * 8 * 4


def write(folder: Path, name: str, value: float = 1.0) -> Path:
    tensors = {
        "unet.proj.lora_A.weight": torch.full((2, 8), value),
        "unet.proj.lora_B.weight": torch.ones(8, 2),
    }
    return lora.save(folder / f"{name}.safetensors", tensors)


def store(folder: Path, budget: int = 10**6) -> Store:
    return Store(Library([folder]), TARGETS, parts=["unet"], budget=budget)


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


def test_further_folders_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "bundle" / "adapters", "a")
    write(tmp_path / "more", "b")
    settings = AdapterSettings((tmp_path / "more", tmp_path / "other"), 5)
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert AdapterSettings.from_environment() == settings
    assert list(Library.of_bundle(tmp_path / "bundle").entries()) == ["a", "b"]


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
    second = kept.load("a")
    assert second.digest != first.digest
    assert kept.reads == 2
    (tmp_path / "a.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(InvalidInput, match="is no safetensors file"):
            kept.load("a")
    assert kept.reads == 3


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


def test_reading_ahead(tmp_path: Path) -> None:
    write(tmp_path, "a")
    digest = store(tmp_path).load("a").digest
    kept = store(tmp_path)
    kept.read_ahead("a", digest)
    kept.read_ahead("missing", "0")
    deadline = time.monotonic() + 10
    while (kept.reading(digest) or kept.reading("0")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kept.reads == 1
    assert kept.load_digest("a", digest).digest == digest
    assert kept.reads == 1


def test_hints_reach_the_listener_of_their_server(tmp_path: Path) -> None:
    uses = (AdapterUse("a", "0123", 0.5),)
    got: list[object] = []
    told = threading.Event()

    def act(hint: tuple[AdapterUse, ...]) -> None:
        got.append(hint)
        told.set()

    send_hint(tmp_path / "board", uses)  # nobody listens
    listener = HintListener(tmp_path / "board", act)
    send_hint(tmp_path / "other", uses)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"nonsense", _address(tmp_path / "board"))
        stranger.sendto(b"[1]", _address(tmp_path / "board"))
    send_hint(tmp_path / "board", uses)
    assert told.wait(10)
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
