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
from tessera.shared.board import Board
from tessera.shared.rows import Phase


@pytest.fixture
def board(tmp_path: Path) -> Path:
    Board(tmp_path / "board").open("a", 20)
    return tmp_path / "board"


def activity_of(board: Path) -> Path:
    return Path(f"{board}.activity")


def timed(
    board: Path, *, hurry: bool = False, allowed: float = module.DRAIN_S
) -> tuple[float, list[str]]:
    """Seconds that draining took, and what it said."""
    said: list[str] = []
    began = time.monotonic()
    drain(board, activity_of(board), (), lambda: hurry, said.append, seconds=allowed)
    return time.monotonic() - began, said


def test_an_idle_server_ends_at_once_and_takes_no_jobs(board: Path) -> None:
    seconds, said = timed(board)
    assert QUIET_S <= seconds < module.DRAIN_S
    assert not said
    with pytest.raises(Unavailable, match="the server is being stopped; try again later"):
        Board(board).open("b", 20)


def test_a_server_that_never_had_a_board_has_nothing_to_end(tmp_path: Path) -> None:
    assert not timed(tmp_path / "board")[1]


class Answering:
    """Time that passes only in `sleep`, while a request has four steps with pauses between."""

    STEP_S, PAUSE_S = 0.3, 0.05

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._step = contextlib.ExitStack()
        self.now = 0.0
        self.sleep(0.0)

    @property
    def ends(self) -> float:
        """When it does."""
        return 4 * self.STEP_S + 3 * self.PAUSE_S

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """As `time.sleep`."""
        self.now += seconds
        self._step.close()
        if self.now < self.ends and self.now % (self.STEP_S + self.PAUSE_S) < self.STEP_S:
            self._step.enter_context(self._activity.busy())


def test_a_request_may_end_and_a_pause_between_its_steps_is_no_end(
    board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = Answering(Activity(activity_of(board)))
    monkeypatch.setattr(module, "time", answering)
    drain(board, activity_of(board), (), lambda: False, lambda said: None)
    assert answering.ends + QUIET_S - 0.1 < answering.now < answering.ends + QUIET_S + 0.1


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
    closed = threading.Event()

    def close() -> None:
        closed.set()
        Board(board).close(slot, ticket, Phase.DONE)

    threading.Timer(0.5, close).start()
    for client in clients:
        client.start()
    seconds, _ = timed(board)
    ended.set()
    for client in clients:
        client.join()
    assert closed.is_set()
    assert module.REFUSALS_S <= seconds < module.DRAIN_S


def test_what_takes_too_long_is_cancelled(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANCEL_S", 0.3)
    monkeypatch.setattr(module, "_TELL_S", 0.1)
    with Activity(activity_of(board)).busy():
        seconds, said = timed(board, allowed=0.3)
    assert 0.6 <= seconds < module.DRAIN_S
    assert len(said) == 2
    assert "cancelled" in said[1]
    assert Board(board).status("a").cancelled


def test_who_keeps_the_lock_of_the_board_holds_nothing_up(
    board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been stopped, for good."""
    monkeypatch.setattr(module, "CANCEL_S", 0.3)
    monkeypatch.setattr(module, "LOCK_S", 0.05)
    keeper, said, looks = Board(board), list[str](), list[int]()

    def hurry() -> bool:
        looks.append(1)
        if len(looks) == 3:
            keeper._lock()
        return False

    with Activity(activity_of(board)).busy():
        drain(board, activity_of(board), (), hurry, said.append, seconds=0.6)
    assert "cancelled" in said[-1]
    assert timed(board, allowed=0.1)[1] == [
        "requests are not waited for: a process keeps the lock of the job board"
    ]
    assert timed(board, hurry=True)[1] == []


def test_a_second_signal_does_not_wait(board: Path) -> None:
    with Activity(activity_of(board)).busy():
        assert timed(board, hurry=True)[0] < module.DRAIN_S


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
