"""The key of a server, and the files that nobody else may have put there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tessera.controls.residency import Residency
from tessera.edits.chooser import StepChooser
from tessera.edits.opening import _remembered
from tessera.errors import Forbidden, TesseraError
from tessera.shared.board import Board
from tessera.shared.load import read as read_load
from tessera.shared.load import write as write_load
from tessera.shared.own_files import open_own, write_own
from tessera.shared.signing import ServerKey
from tests.fakes.residency import BUDGET, SIZES, FakeModels


def test_every_process_has_the_same_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(ServerKey, [tmp_path / "key"] * 8))
    signed = keys[0].sign("PLAN", b"text")
    assert {key.verified("PLAN", signed) for key in keys} == {b"text"}
    assert len({key.word for key in keys}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_servers_do_not_know_each_others_plans(tmp_path: Path) -> None:
    one, other = ServerKey(tmp_path / "one"), ServerKey(tmp_path / "other")
    with pytest.raises(Forbidden, match="takes requests from the server's own models only"):
        other.verified("PLAN", one.sign("PLAN", b"text"))
    with pytest.raises(Forbidden):
        other.check_word(one.word)
    other.check_word(other.word)


FORGED: dict[str, Callable[[ServerKey], bytes]] = {
    "nothing": lambda key: b"",
    "no mac": lambda key: b"{}",
    "short": lambda key: key.sign("PLAN", b"{}")[:31],
    "other text": lambda key: key.sign("PLAN", b"{}")[:32] + b"[]",
    "other mac": lambda key: b"0" * 32 + b"{}",
    "not ASCII": lambda key: b"\xff" * 32 + b"{}",
    "a call's word": lambda key: key.word.encode(),
    "another tensor's": lambda key: key.sign("STATS", b"{}"),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_what_is_forged(tmp_path: Path, forged: Callable[[ServerKey], bytes]) -> None:
    key = ServerKey(tmp_path / "key")
    with pytest.raises(Forbidden):
        key.verified("PLAN", forged(key))


@pytest.mark.parametrize("word", [None, True, 1, "", "x" * 32, "é", ["a"]], ids=repr)
def test_words_that_are_none(tmp_path: Path, word: object) -> None:
    assert not ServerKey(tmp_path / "key").knows(word)


@pytest.mark.parametrize(
    "spoil",
    [lambda key: key.chmod(0o644), lambda key: key.write_bytes(b"short")],
    ids=["readable", "short"],
)
def test_a_key_that_is_none(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    ServerKey(tmp_path / "key")
    spoil(tmp_path / "key")
    with pytest.raises(TesseraError, match="is not a key that this server alone can read"):
        ServerKey(tmp_path / "key")


def test_links_and_pipes_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(TesseraError, match=f"{name} (cannot be opened|is not a file of)"):
            open_own(tmp_path / name, os.O_RDWR | os.O_CREAT)
    with pytest.raises(TesseraError):
        Board(tmp_path / "link")
    assert (tmp_path / "target").stat().st_size == 0


def residency(path: Path) -> None:
    models = FakeModels(path.parent / "models")
    Residency(path, SIZES, budget=BUDGET, pinned=(), models=models).take(["a"])


def no_costs() -> StepChooser:
    raise AssertionError("they are not measured for others")


READ: dict[str, Callable[[Path], object]] = {
    "the board": Board,
    "the key": ServerKey,
    "ControlNets that are loaded": residency,
    "what denoise has to do": read_load,
    "costs of steps": lambda path: _remembered(path, no_costs),
}


@pytest.mark.parametrize("use", READ.values(), ids=READ.keys())
def test_files_of_others_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], object]
) -> None:
    (tmp_path / "theirs").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(TesseraError, match="link cannot be opened"):
        use(tmp_path / "link")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(TesseraError, match="is not a file of this server's user; remove it"):
        use(tmp_path / "theirs")
    assert (tmp_path / "theirs").stat().st_size == 0


def test_what_is_written_replaces_a_link_and_follows_none(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "load").symlink_to(tmp_path / "target")
    (tmp_path / "load.partial").symlink_to(tmp_path / "target")
    write_load(tmp_path / "load", {"step": 1})
    assert read_load(tmp_path / "load") == {"step": 1}
    assert (tmp_path / "load").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "target").stat().st_size == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["load", "load.partial", "target"]


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_own(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []
