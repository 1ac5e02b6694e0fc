"""A server ends when its requests have, and no later than it has to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from tessera.errors import Unavailable
from tessera.serve import drain as module
from tessera.serve.drain import QUIET_S, drain, unsent
from tessera.shared.activity import Activity
from tessera.shared.board import Board, Phase


@pytest.fixture
def board(tmp_path: Path) -> Path:
    Board(tmp_path / "board").open("a", 20)
    return tmp_path / "board"


def activity_of(board: Path) -> Path:
    return Path(f"{board}.activity")


def timed(board: Path, *, hurry: bool = False) -> tuple[float, list[str]]:
    """Seconds that draining took, and what it said."""
    said: list[str] = []
    began = time.monotonic()
    drain(board, activity_of(board), (), lambda: hurry, said.append)
    return time.monotonic() - began, said


def test_an_idle_server_ends_at_once_and_takes_no_jobs(board: Path) -> None:
    seconds, said = timed(board)
    assert QUIET_S <= seconds < QUIET_S + 5
    assert not said
    with pytest.raises(Unavailable, match="the server is being stopped; try again later"):
        Board(board).open("b", 20)


def test_a_server_that_never_had_a_board_has_nothing_to_end(tmp_path: Path) -> None:
    assert not timed(tmp_path / "board")[1]


def test_a_request_may_end_and_a_pause_between_its_steps_is_no_end(board: Path) -> None:
    activity, began = Activity(activity_of(board)), time.monotonic()

    def answer() -> None:
        for _ in range(4):
            with activity.busy():
                time.sleep(0.3)
            time.sleep(0.05)

    thread = threading.Thread(target=answer)
    thread.start()
    time.sleep(0.05)
    timed(board)
    assert time.monotonic() - began > 4 * 0.3 + 3 * 0.05 + QUIET_S / 2
    thread.join()


def test_clients_that_try_again_and_again_keep_no_server_alive(tmp_path: Path) -> None:
    board = tmp_path / "board"
    slot, ticket = Board(board).open("a", 20)
    Board(board).refuse()
    ended = threading.Event()

    def try_again() -> None:
        activity, own = Activity(activity_of(board)), Board(board)
        while not ended.is_set():
            with activity.busy(), contextlib.suppress(Unavailable):
                own.open("b", 20)
                time.sleep(0.01)

    clients = [threading.Thread(target=try_again) for _ in range(3)]
    threading.Timer(0.5, lambda: Board(board).close(slot, ticket, Phase.DONE)).start()
    for client in clients:
        client.start()
    seconds, _ = timed(board)
    ended.set()
    for client in clients:
        client.join()
    assert 0.5 + module.REFUSALS_S - 0.1 <= seconds < module.DRAIN_S


def test_what_takes_too_long_is_cancelled(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_S", 0.3)
    monkeypatch.setattr(module, "CANCEL_S", 0.3)
    monkeypatch.setattr(module, "_TELL_S", 0.1)
    with Activity(activity_of(board)).busy():
        seconds, said = timed(board)
    assert 0.6 <= seconds < 6
    assert len(said) == 2
    assert "cancelled" in said[1]
    assert Board(board).status("a").cancelled


def test_a_second_signal_does_not_wait(board: Path) -> None:
    with Activity(activity_of(board)).busy():
        assert timed(board, hurry=True)[0] < 3


def test_what_a_client_has_not_got_yet_is_unsent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        answering, _ = server.accept()
        with client, answering:
            assert not unsent([port])
            answering.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while answering.send(bytes(65536)):
                    pass
            assert unsent([port])
            assert not unsent([port + 1])
